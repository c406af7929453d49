"""What a main job leaves for a person to read."""

from pathlib import Path


def test_the_page_stands_beside_the_report_in_the_run(made: Path) -> None:
    (page,) = (made / "mlartifacts" / "vae").glob("*/artifacts/parity.html")
    report = page.with_name("parity.json")
    assert report.read_text() == (made / "bundle" / "parity.json").read_text()
    assert "Parity of bundle bundle: passed" in page.read_text()
    card = (made / "bundle" / "MODEL_CARD.md").read_text()
    for name in ("samples.png", "reconstructions.png"):
        assert f"]({name})" in card
        assert (made / "bundle" / name).exists()
