"""A private nginx per backend: it needs no system nginx, and doesn't disturb one."""

from __future__ import annotations

from pathlib import Path

# `user` because Debian's built-in default differs from what its own nginx.conf says; the paths,
# because the built-in ones belong to the system's nginx.
_CONFIG = """\
daemon off;
user www-data;
worker_processes 1;
worker_rlimit_nofile 16384;
pid {folder}/nginx.pid;
error_log {folder}/nginx-error.log;
events {{ worker_connections 8192; }}
http {{
    access_log off;
    default_type text/plain;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    # A test on a machine that is translated, not run, asks again after minutes.
    keepalive_timeout 1h;
    keepalive_requests 1000000;
    server {{
        listen 0.0.0.0:80 backlog=4096;
        listen [::]:80 ipv6only=on backlog=4096;
        location = / {{ {answer} }}
        location = /status {{ stub_status; }}
        location /files/ {{ root {folder.parent}; }}
        location / {{ return 404; }}
    }}
    include {folder}/more*.conf;
}}
"""


# Instead of a status. 444 is nginx's own: it closes the connection without a word, if there is no text.
CLOSES = 444
RESETS = 1444  # the same with a reset
SLOW = 1200  # it answers, but first asks a server that takes its time: see SLOW_PORT
SLOW_PORT = 8200  # of that server, on the backend itself

_ANSWERS = {
    CLOSES: "return 444;",
    RESETS: "reset_timedout_connection on; return 444;",
    SLOW: f"proxy_pass http://127.0.0.1:{SLOW_PORT};",
}


def prepare(name: str, folder: Path, status: int = 200) -> list[str]:
    """Write the configuration of a server that answers with its name and this status, and has the files
    that are in `files` beside its folder; returns its command."""
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "nginx.conf"
    answer = _ANSWERS.get(status, f'return {status} "{name}\\n";')
    config.write_text(_CONFIG.format(folder=folder, answer=answer))
    return command(folder)


def command(folder: Path) -> list[str]:
    """What starts the server that was prepared."""
    return ["nginx", "-e", f"{folder}/nginx-error.log", "-p", str(folder), "-c", f"{folder}/nginx.conf"]
