"""Rounds and their statistics, on a clock that the tests advance."""

import pytest

from sibp.bench.timing import MIN_ROUNDS, interleave, quartiles, ratios


class Machine:
    """A clock, and workers whose steps take a given time."""

    def __init__(self):
        self.now, self.slowdown, self.log = 0.0, 1.0, []

    def clock(self):
        return self.now

    def worker(self, name, seconds):
        return FakeWorker(self, name, seconds)


class FakeWorker:
    """The first step after a restart takes ten times as long."""

    def __init__(self, machine, name, seconds):
        self.machine, self.name, self.seconds = machine, name, seconds
        self.steps, self.period = 0, 1

    def step(self):
        self.steps += 1
        cold = 10.0 if self.steps == 1 else 1.0
        self.machine.now += self.seconds * cold * self.machine.slowdown
        self.machine.log.append(self.name)

    def restart(self):
        self.steps = 0
        self.machine.log.append(f"restart {self.name}")


def test_samples_hold_neither_warm_up_nor_the_first_step_after_a_restart():
    machine = Machine()
    workers = {"a": machine.worker("a", 0.5), "b": machine.worker("b", 2.0)}
    samples = interleave(workers, 0.0, machine.clock).seconds
    assert samples == {"a": [0.5] * MIN_ROUNDS, "b": [2.0] * MIN_ROUNDS}


def test_workers_take_turns_and_each_round_begins_with_another():
    machine = Machine()
    interleave({name: machine.worker(name, 1.0) for name in "abc"}, 0.0, machine.clock)
    turns = [entry[-1] for entry in machine.log if entry.startswith("restart")]
    assert turns[:9] == list("abcbcacab")


def test_short_steps_are_timed_in_stretches():
    machine = Machine()
    interleave({"a": machine.worker("a", 0.001)}, 0.0, machine.clock)
    last = machine.log[::-1].index("restart a")
    assert last == 1 + 30  # one to warm the caches, then 0.03 seconds' worth


@pytest.mark.parametrize(("seconds", "period", "steps"), [(0.001, 20, 40), (0.001, 100, 100), (1.0, 7, 7)])
def test_a_stretch_is_a_whole_number_of_periods(seconds, period, steps):
    """Otherwise a method that renews its preconditioner every 20 steps would seem as cheap as the other 19 steps."""
    machine = Machine()
    worker = machine.worker("a", seconds)
    worker.period = period
    interleave({"a": worker}, 0.0, machine.clock)
    assert machine.log[::-1].index("restart a") == 1 + steps


def test_processor_time_is_recorded_with_wall_clock_time():
    machine = Machine()
    workers = {"a": machine.worker("a", 0.5), "b": machine.worker("b", 2.0)}
    samples = interleave(workers, 0.0, machine.clock, processor=lambda: 2 * machine.now)  # two busy threads
    assert samples.seconds == {"a": [0.5] * MIN_ROUNDS, "b": [2.0] * MIN_ROUNDS}
    assert samples.processor == {"a": [1.0] * MIN_ROUNDS, "b": [4.0] * MIN_ROUNDS}


def test_rounds_last_as_long_as_requested():
    machine = Machine()
    samples = interleave({"a": machine.worker("a", 1.0)}, 100.0, machine.clock).seconds
    assert len(samples["a"]) == 10  # 10 + 1 seconds a round; the last round starts before the limit


def test_a_slow_stretch_of_the_machine_cancels_in_ratios():
    machine = Machine()
    a, b = machine.worker("a", 1.0), machine.worker("b", 3.0)
    restart = a.restart

    def slower():
        machine.slowdown *= 2
        restart()

    a.restart = slower
    samples = interleave({"a": a, "b": b}, 0.0, machine.clock).seconds
    assert samples["b"] == [6.0, 6.0, 24.0, 24.0, 96.0]
    # Rounds that start with b finish before the machine slows down again.
    assert ratios(samples["b"], samples["a"]).median == pytest.approx(3.0)


def test_quartiles():
    found = quartiles([4.0, 1.0, 2.0, 3.0, 5.0])
    assert (found.low, found.median, found.high, found.count) == (2.0, 3.0, 4.0, 5)


def test_ratios_are_taken_round_by_round():
    assert ratios([2.0, 30.0, 8.0], [1.0, 10.0, 2.0]).median == pytest.approx(3.0)
    assert quartiles([2.0, 30.0, 8.0]).median / quartiles([1.0, 10.0, 2.0]).median == pytest.approx(4.0)
