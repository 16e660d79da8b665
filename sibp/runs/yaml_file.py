"""Read and write YAML as Hydra's OmegaConf does, so that all files mean the same.

Duplicate keys are refused, ``1e-3`` is a number, and dates are strings.
"""

import re
from typing import Any

import yaml

MOST_MERGES = 10_000  # uses of `<<`; a file that doubles with each would fill the memory


class YamlError(Exception):
    """Invalid YAML; the message is the reason in one line."""


def parse_yaml(text: str) -> Any:
    """Read a YAML text.

    Args:
        text: of a file.

    Returns:
        Mappings, lists, numbers, strings, booleans and None.

    Raises:
        YamlError: it is invalid, has a duplicate key, or expands exponentially.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        place = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        hint = " (tabs cannot indent: write spaces)" if "'\\t'" in str(error.problem) else ""
        raise YamlError(f"{place}{error.problem or error.context}{hint}") from error
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, RecursionError) as error:
        lines = str(error).splitlines()
        raise YamlError(lines[0] if lines else type(error).__name__) from error


def yaml_text(value: Any) -> str:
    """Write a value as YAML that `parse_yaml` reads back unchanged.

    Args:
        value: mappings, lists, numbers, strings, booleans and None.

    Returns:
        The text, keys sorted.
    """
    return yaml.dump(value, Dumper=_Dumper, allow_unicode=True)


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with OmegaConf's rules and limited merging."""

    merges = 0

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Called for every mapping."""
        keys = set()
        for key, _ in node.value:
            if key.tag == yaml.resolver.BaseResolver.DEFAULT_SCALAR_TAG and key.value in keys:
                raise yaml.constructor.ConstructorError(
                    problem=f"{key.value} is given twice", problem_mark=key.start_mark
                )
            keys.add(str(key.value))
        return super().construct_mapping(node, deep)

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Called for every mapping, with what `<<` brings in."""
        super().flatten_mapping(node)
        self.merges += len(node.value)
        if self.merges > MOST_MERGES:
            raise yaml.YAMLError("it merges too much")


class _Dumper(yaml.SafeDumper):
    """Quotes strings that the loader would read as another type."""


TIMESTAMP, FLOAT = "tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:float"
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in patterns if tag not in (TIMESTAMP, FLOAT)]
    for first, patterns in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    FLOAT,
    re.compile(
        r"""^(?:[-+]?(?:[0-9][0-9_]*)\.[0-9_]*(?:[eE][-+]?[0-9]+)?
        |[-+]?(?:[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)
        |\.[0-9_]+(?:[eE][-+][0-9]+)?
        |[-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+\.[0-9_]*
        |[-+]?\.(?:inf|Inf|INF)
        |\.(?:nan|NaN|NAN))$""",
        re.VERBOSE,
    ),
    list("-+0123456789."),
)
_Dumper.yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers
