"""Parts of a model and their parameter groups."""

from __future__ import annotations

from tests.train import small
from train.parts import freeze, groups
from train.recipe_files import load_recipe


def test_groups_have_their_rates_and_norms_no_decay() -> None:
    recipe = load_recipe("mini")
    model = small.model()
    freeze(model, recipe)
    parameter_groups = groups(model, recipe)
    assert sum(group.count for group in parameter_groups) == sum(
        p.numel() for p in model.parameters()
    )
    for group in parameter_groups:
        assert group.rate == recipe.learning_rate.learning[group.part]
        for name in group.names:
            decays = not name.endswith("bias") and "norm" not in name
            assert (group.decay > 0) == decays, name
