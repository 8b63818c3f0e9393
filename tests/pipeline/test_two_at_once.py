"""A second command that writes is refused at once; the first one, and commands that read, are not disturbed."""

import signal

import pytest


@pytest.mark.pipeline
def test_a_second_udc_train_is_refused_and_the_first_one_ends_well(by_hand):
    by_hand.run("udc", "prepare")
    (by_hand.root / ".udc/writer.json").unlink()
    first = by_hand.start("udc", "train")
    by_hand.wait_for(".udc/writer.json", first)
    first.send_signal(signal.SIGSTOP)  # it would end before the other commands have started
    for command in ("train", "evaluate", "prepare"):
        second = by_hand.run("udc", command, check=False)
        assert second.returncode == 1
        assert f"error: udc train (process {first.pid}) is writing to {by_hand.root}; wait until" in second.stderr
    first.send_signal(signal.SIGCONT)
    assert first.wait() == 0, first.stdout.read()
    by_hand.run("udc", "evaluate")
    runs = by_hand.runs()
    assert [run.info.status for run in runs] == ["FINISHED"]
