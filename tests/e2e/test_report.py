"""The parity page, the model card and the pictures that a main job writes for people."""

from pathlib import Path


def test_the_main_job_logs_the_parity_page_and_writes_a_card_with_pictures(made: Path) -> None:
    (page,) = (made / "mlartifacts" / "vae").glob("*/artifacts/parity.html")
    report = page.with_name("parity.json")
    assert report.read_text() == (made / "bundle" / "parity.json").read_text()
    assert "Parity of bundle bundle: passed" in page.read_text()
    card = (made / "bundle" / "MODEL_CARD.md").read_text()
    for name in ("samples.png", "reconstructions.png"):
        assert f"]({name})" in card
        assert (made / "bundle" / name).exists()
