"""The blind vote, without a browser."""

from demo import vote


def test_pairs_and_verdicts():
    items = [{"score": score} for score in (0.3, 0.1, None, 0.1)]
    for _ in range(50):
        pair = vote.draw_pair(items)
        better = 0 if pair[0]["score"] > pair[1]["score"] else 1
        assert vote.verdict(pair, better).startswith("agree ") and vote.verdict(pair, 1 - better).startswith("differ ")
    assert vote.draw_pair(items[1:]) is None and vote.draw_pair([]) is None
