-- For wrk, one thread: wrk … URL -- REQUESTS SECONDS CONNECTIONS
--
-- One connection per request, as many as REQUESTS in SECONDS at most; counts who answered, second by
-- second, and every failure. wrk alone would not see a connection that nobody ever answers. So, at
-- the end, each of its connections is parked as it becomes free; those that don't come are missing.
-- Its last line of output is the result as JSON.

local ffi = require("ffi")
ffi.cdef [[
   struct lb_timeval { long sec, usec; };
   int gettimeofday(struct lb_timeval *tv, void *tz);
   int getpid(void);
   int kill(int pid, int sig);
]]
local SIGINT = 2
local PARKED_MS = 3600 * 1000

local clock = ffi.new("struct lb_timeval")
local the_thread

local function now()
   ffi.C.gettimeofday(clock, nil)
   return tonumber(clock.sec) + tonumber(clock.usec) / 1e6
end

function setup(thread)
   the_thread = thread
end

function init(args)
   wrk.headers["Connection"] = "close"
   bytes = wrk.format()
   -- Globals, because wrk's thread:get() can't see locals.
   left = tonumber(args[1])
   deadline = now() + tonumber(args[2])
   connections = tonumber(args[3])
   parked = 0
   bad = 0
   counts = {} -- ["<second> <name>"] = answers
end

-- wrk asks before each request how long to wait with it.
function delay()
   if left > 0 and now() < deadline then
      left = left - 1
      return 0
   end
   parked = parked + 1
   if parked == connections then
      ffi.C.kill(ffi.C.getpid(), SIGINT) -- nothing is under way any more: end now
   end
   return PARKED_MS
end

function request()
   return bytes
end

function response(status, headers, body)
   local name = string.match(body, "^([%w-]+)\n$")
   if status ~= 200 or not name then
      bad = bad + 1
      return
   end
   local key = math.floor(now()) .. " " .. name
   counts[key] = (counts[key] or 0) + 1
end

function done(summary, latency, requests)
   local rows = {}
   for key, count in pairs(the_thread:get("counts")) do
      local second, name = string.match(key, "^(%d+) (.+)$")
      table.insert(rows, string.format('[%s,"%s",%d]', second, name, count))
   end
   local errors = summary.errors
   print(string.format(
      '{"counts":[%s],"failures":{"wrong answer":%d,"no answer":%d,'
         .. '"connect":%d,"read":%d,"write":%d,"timeout":%d}}',
      table.concat(rows, ","), the_thread:get("bad"),
      the_thread:get("connections") - the_thread:get("parked"),
      errors.connect, errors.read, errors.write, errors.timeout))
end
