"""Pictures of plans."""

from positions import PPE, Image, MRoPE, Text, plan
from positions.draw import draw
from tests.positions.hosts import reduced


def test_the_same_plan_gives_the_same_file(tmp_path):
    made = plan([Text(1), Image((2, 2)), Text(1)], MRoPE())
    merged = made.after({1: reduced([0] * 4, [0])}, PPE(2))
    for name, drawn_plan in (("a", made), ("b", made), ("merged", merged)):
        draw(drawn_plan, tmp_path / f"{name}.png", "a title")
    first = (tmp_path / "a.png").read_bytes()
    assert first.startswith(b"\x89PNG")
    assert first == (tmp_path / "b.png").read_bytes()
    assert first != (tmp_path / "merged.png").read_bytes()
