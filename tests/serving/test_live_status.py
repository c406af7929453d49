"""The file in which the observer of a server says what it has seen."""

from pathlib import Path

from serving.live_status import CaptureStatus, DriftStatus, LiveStatus, ShadowStatus, Window


def test_every_part_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    window = Window(seconds=60, rows=3, mean=-101.5, counts=(1, 2, 0))
    status = LiveStatus(
        time=1.5,
        digest="ab",
        rows=3,
        dropped_rows=1,
        drift=DriftStatus(
            rows=3,
            log_e_value=0.25,
            level=0.01,
            alarm_time=2.5,
            alarm_rows=2,
            columns={"age": 0.5},
            edges=(-120.0, -100.0),
            held_out=(0.25, 0.5, 0.25),
            windows=(window,),
        ),
        shadow=ShadowStatus(name="vae", version="2", digest="cd", rows=3, mean_difference=0.5),
        capture=CaptureStatus(folder="captured", parts=1, rows=3, bytes=100, fault="disk full"),
    )
    status.write(tmp_path / "live.json")
    assert LiveStatus.read(tmp_path / "live.json") == status


def test_parts_that_are_switched_off_and_a_file_that_is_missing_are_none(tmp_path: Path) -> None:
    assert LiveStatus.read(tmp_path / "live.json") is None
    status = LiveStatus(time=1.5, digest="ab", rows=0, dropped_rows=0)
    status.write(tmp_path / "live.json")
    assert LiveStatus.read(tmp_path / "live.json") == status
