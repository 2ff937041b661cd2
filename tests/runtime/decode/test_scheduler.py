"""Calls that share a batch, with a scripted one: who steps it, and what happens to the others when a call ends, gives up or breaks it."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

import pytest

from onnxport.errors import Cancelled, GenerationTimeout
from onnxport.runtime.decode.scheduler import SharedBatch
from onnxport.runtime.options import Watch


class Count:
    """A task that is done after some steps. broken: the batch fails when it steps this one."""

    def __init__(self, name: str, steps: int, broken: type[BaseException] | None = None) -> None:
        self.name, self.steps, self.broken = name, steps, broken
        self.taken, self.dropped = 0, False

    @property
    def done(self) -> bool:
        return self.dropped or self.taken >= self.steps

    def drop(self) -> None:
        self.dropped = True

    def again(self) -> Count:
        return Count(self.name, self.steps, self.broken)


class Script:
    """What batches did: a line of names a step, and the thread of each. at: step (from 1, over all batches) → what to do in it."""

    def __init__(self, size: int = 8, at: dict[int, Callable[[], None]] | None = None) -> None:
        self.size, self.at = size, at or {}
        self.lines: list[str] = []
        self.threads: list[str] = []
        self.batches = 0

    def batch(self) -> Batch:
        self.batches += 1
        return Batch(self)


class Batch:
    """Moves up to `size` tasks on, one step each."""

    def __init__(self, script: Script) -> None:
        self.script, self.tasks = script, []  # type: Script, list[Count]

    def step(self, waiting: deque[Count]) -> list[Count]:
        self.tasks = [task for task in self.tasks if not task.done]
        while waiting and len(self.tasks) < self.script.size:
            if not (task := waiting.popleft()).done:
                self.tasks.append(task)
        self.script.lines.append("".join(task.name for task in self.tasks))
        self.script.threads.append(threading.current_thread().name)
        self.script.at.get(len(self.script.lines), lambda: None)()
        for task in self.tasks:
            if task.broken is not None:
                raise task.broken(task.name)
            task.taken += 1
        return [task for task in self.tasks if task.done]


class Ends:
    """A watch that raises once it is told to."""

    def __init__(self, error: Exception) -> None:
        self.error, self.over = error, False

    def end(self) -> None:
        self.over = True

    def check(self) -> None:
        if self.over:
            raise self.error


class Caller(threading.Thread):
    """A call in a thread of its own, and what came of it."""

    def __init__(self, name: str, shared: SharedBatch[Count], tasks: list[Count], watch: Watch | Ends | None = None) -> None:
        super().__init__(name=name, daemon=True)
        self.shared, self.watch = shared, watch or Watch()
        self.call = shared.enter(tasks, Count.again)
        self.found: list[Count] = []
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self.found = list(self.shared.run(self.call, self.watch))  # type: ignore[arg-type]
        except BaseException as error:
            self.error = error

    def finish(self) -> None:
        self.join(60)
        assert not self.is_alive(), f"call {self.name} hangs"


def counts(*named: tuple[str, int]) -> list[Count]:
    return [Count(name, steps) for name, steps in named]


def assert_done(*callers: Caller) -> None:
    for caller in callers:
        assert caller.error is None
        assert caller.found and all(task.taken == task.steps for task in caller.found)


def test_two_calls_share_every_step() -> None:
    script = Script()
    shared = SharedBatch(script.batch)
    first, second = (shared.enter(counts(*tasks), Count.again) for tasks in ([("a", 3), ("b", 1)], [("c", 2)]))
    found = shared.run(first, Watch())
    assert [task.taken for task in found] == [3, 1] and script.lines == ["abc", "ac", "a"]
    assert [task.taken for task in shared.run(second, Watch())] == [2]  # nothing was left to do
    assert len(script.lines) == 3 and script.batches == 1 and shared.idle


def test_tasks_that_wait_take_the_places_of_those_that_ended() -> None:
    script = Script(size=2)
    shared = SharedBatch(script.batch)
    first, second = (shared.enter(counts(*tasks), Count.again) for tasks in ([("a", 1), ("b", 4), ("c", 2)], [("d", 1), ("e", 2)]))
    shared.run(first, Watch())
    shared.run(second, Watch())
    assert script.lines == ["ab", "bc", "bc", "bd", "e", "e"]


def test_results_come_in_the_order_of_the_tasks() -> None:
    shared = SharedBatch(Script(size=1).batch)
    tasks = counts(("a", 3), ("b", 1), ("c", 2))
    assert list(shared.run(shared.enter(tasks, Count.again), Watch())) == tasks


def test_a_call_without_tasks_is_done() -> None:
    script = Script()
    shared = SharedBatch(script.batch)
    assert list(shared.run(shared.enter([], Count.again), Watch())) == [] and script.lines == [] and shared.idle


def test_the_leader_hands_over_when_its_own_are_done() -> None:
    script = Script()
    shared = SharedBatch(script.batch)
    first, second = Caller("one", shared, counts(("a", 2))), Caller("two", shared, counts(("b", 5)))
    script.at[1] = second.start
    first.start()
    first.finish()
    second.finish()
    assert_done(first, second)
    assert script.lines == ["ab", "ab", "b", "b", "b"] and script.threads == ["one"] * 2 + ["two"] * 3


def test_a_waiting_call_returns_while_another_leads() -> None:
    script = Script()
    shared = SharedBatch(script.batch)
    first, second = Caller("one", shared, counts(("a", 4))), Caller("two", shared, counts(("b", 1)))
    script.at |= {1: second.start, 3: second.finish}
    first.start()
    first.finish()
    assert_done(first, second)
    assert script.lines == ["ab", "a", "a", "a"] and set(script.threads) == {"one"}


def test_calls_of_many_threads_join_a_batch_that_runs() -> None:
    script = Script(size=3)
    shared = SharedBatch(script.batch)
    late: list[Caller] = []

    def enter() -> None:
        name = "bcdefgh"[len(late)]
        late.append(Caller(name, shared, counts((name, 2), (name, 3))))
        late[-1].start()

    script.at |= dict.fromkeys(range(1, 8), enter)
    first = Caller("a", shared, counts(("a", 8)))
    first.start()
    first.finish()
    for caller in late:
        caller.finish()
    assert_done(first, *late)
    assert len(late) == 7 and script.batches == 1 and shared.idle
    assert sum(map(len, script.lines)) == 8 + 7 * 5  # every step of every task once


@pytest.mark.parametrize("error", [Cancelled("cancelled"), GenerationTimeout("too long")], ids=["cancel", "timeout"])
def test_a_waiting_call_gives_up_and_the_others_go_on(error: Exception) -> None:
    script = Script()
    shared = SharedBatch(script.batch)
    watch = Ends(error)
    first, second = Caller("one", shared, counts(("a", 4))), Caller("two", shared, counts(("b", 9)), watch)
    script.at |= {1: second.start, 2: watch.end, 3: second.finish}
    first.start()
    first.finish()
    assert second.error is error and second.call.decodings[0].dropped
    assert_done(first)
    assert script.lines[:3] == ["ab"] * 3 and script.lines[3:] == ["a"] and script.batches == 1 and shared.idle


@pytest.mark.parametrize("error", [Cancelled("cancelled"), GenerationTimeout("too long")], ids=["cancel", "timeout"])
def test_a_leader_gives_up_and_the_others_go_on_where_they_were(error: Exception) -> None:
    script = Script()
    shared = SharedBatch(script.batch)
    watch = Ends(error)
    first, second = Caller("one", shared, counts(("a", 9), ("x", 1)), watch), Caller("two", shared, counts(("b", 4)))
    script.at |= {1: second.start, 2: watch.end}
    first.start()
    first.finish()
    second.finish()
    assert first.error is error and all(task.dropped for task in first.call.decodings)
    assert_done(second)
    assert script.lines == ["axb", "ab", "b", "b"] and script.batches == 1 and shared.idle


def test_a_call_that_gives_up_before_its_turn_is_never_stepped() -> None:
    script = Script(size=1)
    shared = SharedBatch(script.batch)
    watch = Ends(Cancelled("cancelled"))
    first, second = Caller("one", shared, counts(("a", 3))), Caller("two", shared, counts(("b", 1)), watch)
    watch.end()
    script.at |= {1: second.start, 2: second.finish}
    first.start()
    first.finish()
    assert isinstance(second.error, Cancelled) and script.lines == ["a", "a", "a"]
    assert_done(first)


def test_a_call_that_breaks_the_batch_fails_alone_and_the_others_begin_again() -> None:
    script = Script()
    shared = SharedBatch(script.batch)
    first, second = Caller("one", shared, [Count("a", 3, ValueError)]), Caller("two", shared, counts(("b", 2), ("c", 3)))
    script.at[1] = second.start
    first.start()
    first.finish()
    second.finish()
    assert isinstance(first.error, ValueError) and str(first.error) == "a"
    assert_done(second)
    assert script.lines[0] == "abc" and sorted(script.lines[1:]) == ["a", "bc", "bc", "c"] and shared.idle


def test_a_leader_goes_on_alone_when_another_call_breaks_the_batch() -> None:
    script = Script()
    shared = SharedBatch(script.batch)
    first, second = (shared.enter(tasks, Count.again) for tasks in (counts(("a", 1), ("b", 3)), [Count("x", 3, ValueError)]))
    found = shared.run(first, Watch())
    assert [(task.name, task.taken) for task in found] == [("a", 1), ("b", 3)]
    with pytest.raises(ValueError, match="x"):
        shared.run(second, Watch())
    assert shared.idle
    third = shared.enter(counts(("c", 2)), Count.again)  # and the shared is as good as new
    assert [task.taken for task in shared.run(third, Watch())] == [2]


def test_a_call_that_is_the_only_one_fails_at_once() -> None:
    script = Script()
    shared = SharedBatch(script.batch)
    with pytest.raises(ValueError, match="a"):
        shared.run(shared.enter([Count("a", 2, ValueError)], Count.again), Watch())
    assert script.lines == ["a"] and shared.idle


def test_an_interrupted_leader_leaves_and_the_others_begin_again() -> None:
    script = Script()
    shared = SharedBatch(script.batch)
    first, second = (shared.enter(tasks, Count.again) for tasks in ([Count("a", 3, KeyboardInterrupt)], counts(("b", 2))))
    with pytest.raises(KeyboardInterrupt):
        shared.run(first, Watch())
    assert [task.taken for task in shared.run(second, Watch())] == [2]
    assert script.lines == ["ab", "b", "b"] and script.batches == 2


def test_a_call_that_is_alone_is_left_alone_when_another_breaks_the_batch() -> None:
    script = Script()
    shared = SharedBatch(script.batch)
    first, second = Caller("one", shared, counts(("a", 3))), Caller("two", shared, [Count("x", 3, ValueError)])
    script.at[2] = lambda: (second.start(), second.finish())  # within the first step of `a` alone
    first.start()
    first.finish()
    assert isinstance(second.error, ValueError)
    assert_done(first)


def test_tasks_that_ended_in_the_step_that_broke_are_counted() -> None:
    script = Script()
    shared, watch = SharedBatch(script.batch), Ends(Cancelled("it waits for ever"))
    second = shared.enter(counts(("b", 1)), Count.again)  # ends first, then `a` raises
    first = shared.enter([Count("a", 3, ValueError)], Count.again)
    with pytest.raises(ValueError, match="a"):
        shared.run(first, Watch())
    script.at[5] = watch.end
    assert [t.taken for t in shared.run(second, watch)] == [1]
