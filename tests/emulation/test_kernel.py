"""Sleeping, waking, fatal signals, the loss of power, printk, and the board's options."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from emulation.faults import PowerLost
from emulation.linux.kernel import Kernel, Killed, LogRecord, Task, current_task, running
from emulation.options import BoardOptions, OptionError


def in_thread(work: Callable[[], object]) -> Callable[[], object]:
    """Run ``work`` on a thread; the returned function joins it and gives result or exception."""
    results: list[object] = []

    def body() -> None:
        try:
            results.append(work())
        except BaseException as error:
            results.append(error)

    thread = threading.Thread(target=body, daemon=True)
    thread.start()

    def join() -> object:
        thread.join(5)
        assert results, "still asleep"
        return results[0]

    return join


def test_a_sleeper_wakes_when_its_condition_holds() -> None:
    kernel, done = Kernel(), threading.Event()
    join = in_thread(lambda: kernel.wait(done.is_set, task=Task(1)))
    done.set()
    kernel.wake()
    assert join() is True


def test_setting_the_fatal_signal_is_enough_to_end_a_sleep() -> None:
    kernel, task = Kernel(), Task(1)
    asleep = threading.Event()

    def never() -> bool:
        asleep.set()
        return False

    join = in_thread(lambda: kernel.wait(never, task=task))
    asleep.wait(5)
    task.fatal.set()
    assert isinstance(join(), Killed)


def test_a_condition_that_holds_wins_over_a_fatal_signal_and_no_power_over_both() -> None:
    kernel, task = Kernel(), Task(1)
    task.fatal.set()
    assert kernel.wait(lambda: True, task=task)
    kernel.cut_power()
    with pytest.raises(PowerLost):
        kernel.wait(lambda: True, task=task)


def test_power_cut_ends_every_sleep() -> None:
    kernel = Kernel()
    joins = [in_thread(lambda: kernel.wait(lambda: False, task=Task.kernel())) for _ in range(3)]
    kernel.cut_power()
    assert all(isinstance(join(), PowerLost) for join in joins)


def test_a_wait_ends_after_its_timeout() -> None:
    assert Kernel().wait(lambda: False, task=Task(1), timeout=0.01) is False


def test_the_current_task_is_the_one_the_thread_runs_for() -> None:
    task = Task(42)
    assert current_task().pid == 0
    with running(task):
        assert current_task() is task
    assert current_task().pid == 0


def test_log_ring_forgets_the_oldest_and_clear_hides_without_forgetting() -> None:
    kernel = Kernel()
    seen: list[LogRecord] = []
    kernel.log.listen(seen.append)
    kernel.printk("first")
    kernel.log.clear()
    kernel.printk("second", 4)
    assert [record.text for record in kernel.log.records()] == ["second"]
    assert [record.text for record in kernel.log.records(0)] == ["first", "second"]
    assert [record.level for record in seen] == [6, 4]
    for _ in range(200):
        kernel.printk("x" * 1000)
    assert kernel.log.records(0)[0].sequence > 2


def test_options_are_read_from_words() -> None:
    options = BoardOptions.parse(["variant=mm", "rpmb-size-mult=0x20", "write_key=no"])
    assert (options.variant, options.rpmb_size_mult, options.write_key) == ("mm", 32, False)


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("varient=mm", "variant"),
        ("variant=mm-querry", "mm-query"),
        ("rpmb_size_mult=lots", "whole number"),
        ("rpmb_size_mult=129", "1..128"),
        ("write_key=perhaps", "yes or no"),
        ("variant", "key=value"),
        ("cid=00", "32 hexadecimal digits"),
    ],
)
def test_a_wrong_option_names_the_remedy(word: str, hint: str) -> None:
    with pytest.raises(OptionError, match=hint):
        BoardOptions.parse([word])
