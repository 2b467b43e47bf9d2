"""The blind vote, without a browser."""

from dalle_core.recipe import Drawn
from dalle_core.request import DrawingRequest
from dalle_core.studio.pool import Picture
from demo.tabs import vote


def test_pairs_and_verdicts():
    pictures = [Picture(Drawn(DrawingRequest("a fox"), 1, i, score, None), "") for i, score in enumerate((0.3, 0.1, None, 0.1))]
    for _ in range(50):
        pair = vote.draw_pair(pictures)
        better = 0 if pair[0].drawn.score > pair[1].drawn.score else 1
        assert vote.verdict(pair, better).startswith("agree ") and vote.verdict(pair, 1 - better).startswith("differ ")
    assert vote.draw_pair(pictures[1:]) is None and vote.draw_pair([]) is None
