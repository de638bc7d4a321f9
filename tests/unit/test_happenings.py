"""What lbd's loop is told of the time."""

from __future__ import annotations

from lb.node.happenings import WallClock


class Clocks:
    """Both, with hands on them; `stops`: for so long each reading takes, once."""

    def __init__(self) -> None:
        self.time, self.ahead, self.stops = 100.0, 1_000_000.0, 0.0

    def steady(self) -> float:
        return self.time

    def wall(self) -> float:
        before = self.time
        self.time, self.stops = self.time + self.stops, 0.0
        return before + self.ahead


def test_a_clock_that_goes_is_not_one_that_is_set() -> None:
    clocks = Clocks()
    watched = WallClock(clocks.wall, clocks.steady)
    for second in range(100):
        clocks.time += 10.0
        clocks.ahead += 0.005 * (-1) ** second  # as NTP slews it, at most
        assert watched.jump() == 0.0


def test_a_jump_is_noticed_once() -> None:
    clocks = Clocks()
    watched = WallClock(clocks.wall, clocks.steady)
    for jump in (3600.0, -7200.0, 1.5):
        clocks.ahead += jump
        assert watched.jump() == jump
        assert watched.jump() == 0.0


def test_a_pause_between_two_readings_is_no_jump() -> None:
    clocks = Clocks()
    watched = WallClock(clocks.wall, clocks.steady)
    clocks.stops = 30.0
    assert watched.jump() == 0.0
    assert watched.jump() == 0.0
