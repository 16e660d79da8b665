"""The rules of scoring, one by one."""

import math

import pytest

from sibp.analysis.scoring import choose, edge, ratio, verdict

INF = math.inf


def seeds(*values: float) -> dict[int, float]:
    return dict(enumerate(values))


def test_five_seeds_that_agree_decide_in_either_sense():
    low, high = seeds(1, 2, 3, 4, 5), seeds(1.1, 2.1, 3.1, 4.1, 5.1)
    assert verdict(low, high, larger_is_better=False).word == "better"
    assert verdict(low, high, larger_is_better=True).word == "worse"
    assert verdict(high, low, larger_is_better=True).word == "better"
    found = verdict(low, high, larger_is_better=False)
    assert (found.wins, found.ties, found.losses, found.sign_p) == (5, 0, 0, 0.0625)
    assert found.difference is not None
    assert found.difference.median == pytest.approx(-0.1)


def test_pairs_are_made_by_seed_not_by_rank():
    """The same numbers, shifted by one seed: unpaired there is no difference at all."""
    assert verdict(seeds(1, 2, 3, 4, 5), seeds(2, 3, 4, 5, 1), larger_is_better=False).word == "no difference"
    spread = seeds(0, 100, 200, 300, 400)
    assert verdict({s: v - 1 for s, v in spread.items()}, spread, larger_is_better=False).word == "better"


def test_one_of_five_against_is_no_difference():
    found = verdict(seeds(1, 1, 1, 1, 3), seeds(2, 2, 2, 2, 2), larger_is_better=False)
    assert (found.word, found.wins, found.losses) == ("no difference", 4, 1)


def test_four_shared_seeds_are_too_few():
    first, second = seeds(1, 1, 1, 1, 1), {seed: 9.0 for seed in (0, 1, 2, 3, 77)}
    found = verdict(first, second, larger_is_better=False)
    assert found.word == "too few seeds"
    assert found.difference is not None
    assert found.difference.count == 4
    assert verdict({}, second, larger_is_better=False).difference is None


def test_runs_that_diverged_lose_and_tie_among_themselves():
    assert verdict(seeds(*[INF] * 5), seeds(*[1.0] * 5), larger_is_better=False).word == "worse"
    assert verdict(seeds(*[-INF] * 5), seeds(*[0.5] * 5), larger_is_better=True).word == "worse"
    both = verdict(seeds(*[INF] * 5), seeds(*[INF] * 5), larger_is_better=False)
    assert (both.word, both.ties) == ("no difference", 5)
    assert both.difference is not None
    assert both.difference.median == 0


def test_choice_is_by_the_median_accuracy_then_by_loss():
    by_accuracy = [{0: (0.9, 0.1), 1: (0.9, 0.1)}, {0: (0.91, 9.0), 1: (0.91, 9.0)}]
    assert choose(by_accuracy).setting == 1  # pyright: ignore[reportOptionalMemberAccess]
    by_loss = [{0: (0.9, 0.3)}, {0: (0.9, 0.2)}]
    assert choose(by_loss).setting == 1  # pyright: ignore[reportOptionalMemberAccess]
    equal = [{0: (0.9, 0.2)}, {0: (0.9, 0.2)}]
    assert choose(equal).setting == 0  # pyright: ignore[reportOptionalMemberAccess]


def test_choice_uses_tuning_seeds_and_shows_fresh_ones():
    settings = [
        {100: (0.9, 0.3), **{seed: (0.5, 0.9) for seed in range(5)}},  # chosen, though its fresh seeds are poor
        {100: (0.8, 0.3)},
        {100: (0.7, 0.3)},
    ]
    choice = choose(settings)
    assert choice is not None
    assert (choice.setting, choice.tuning_seeds, choice.shown_seeds) == (0, {100}, {0, 1, 2, 3, 4})
    assert choice.fresh


def test_a_setting_without_all_tuning_seeds_is_not_considered():
    settings = [{1: (0.8, 0.3), 2: (0.8, 0.3)}, {1: (0.7, 0.3), 2: (0.7, 0.3)}, {1: (0.99, 0.3)}]
    choice = choose(settings)
    assert choice is not None
    assert (choice.setting, choice.tuning_seeds, choice.fresh) == (0, {1, 2}, False)


def test_one_extra_seed_is_not_enough_to_hide_the_others():
    settings = [{s: (0.8, 0.3) for s in range(6)}, {s: (0.7, 0.3) for s in range(5)}]
    choice = choose(settings)
    assert choice is not None
    assert choice.shown_seeds == set(range(6))
    assert not choice.fresh


def test_a_diverged_setting_is_never_chosen_while_another_completed():
    choice = choose([{0: (-INF, INF)}, {0: (0.1, 2.3)}])
    assert choice is not None
    assert choice.setting == 1
    assert choose([{}, {}]) is None


def test_only_setting_needs_no_tuning():
    choice = choose([{}, {3: (0.9, 0.1), 4: (0.9, 0.1)}])
    assert choice is not None
    assert (choice.setting, choice.tuning_seeds, choice.shown_seeds) == (1, frozenset(), {3, 4})


@pytest.mark.parametrize(
    ("grid", "best", "expected"),
    [
        ([0.1, 1, 10], 10, "largest"),
        ([0.1, 1, 10], 0.1, "smallest"),
        ([0.1, 1, 10], 1, None),
        ([0.0, 0.9], 0.0, None),
        ([0.0, 0.9], 0.9, "largest"),
        ([0.3], 0.3, None),
    ],
)
def test_edge_of_the_grid(grid, best, expected):
    assert edge(grid, best) == expected


def test_ratio_without_a_base_is_unknown():
    assert ratio(3.0, 2.0) == 1.5
    assert ratio(3.0, 0.0) is None
    assert ratio(None, 2.0) is None
    assert ratio(3.0, None) is None
