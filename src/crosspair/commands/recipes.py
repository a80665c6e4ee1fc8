"""crosspair recipes: the built-in recipes with a line about each."""

from argparse import Namespace

from crosspair.training.recipe_files import describe_recipes


def run(options: Namespace) -> None:
    """Print the recipes."""
    print(describe_recipes())
