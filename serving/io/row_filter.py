"""Parse a row filter such as `label != 9 and split == 'test'` into an expression of pyarrow.

The text is parsed with Python's own grammar, and nothing in it is executed: only the forms that
`ALLOWED` names are accepted. Raises `UsageRefused`.
"""

import ast
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from pyarrow import compute

from serving.errors import UsageRefused
from serving.io.arrow_types import is_number, is_text, unwrap_type

ALLOWED = (
    "columns, numbers, 'text', True, False, None, == != < <= > >= in is, and or not, "
    "and col('a name') for a column whose name is not a plain word"
)

_COMPARE: Mapping[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: lambda left, right: left == right,
    ast.NotEq: lambda left, right: left != right,
    ast.Lt: lambda left, right: left < right,
    ast.LtE: lambda left, right: left <= right,
    ast.Gt: lambda left, right: left > right,
    ast.GtE: lambda left, right: left >= right,
}


@dataclass(frozen=True, slots=True)
class RowFilter:
    """A filter and the columns that it reads."""

    text: str
    expression: Any
    columns: tuple[str, ...]

    def apply(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Return the rows for which the filter is true; a comparison with null is never true."""
        try:
            return batch.filter(self.expression)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as err:
            raise UsageRefused(f"--where {self.text!r} does not fit the columns: {err}") from err


def parse_row_filter(text: str, schema: pa.Schema) -> RowFilter:
    """Parse a filter over the columns of `schema`.

    Raises:
        UsageRefused: the text is not a filter, or does not fit the columns.
    """
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as err:
        raise UsageRefused(f"--where {text!r} cannot be read; allowed are {ALLOWED}") from err
    reader = _Reader(text, schema)
    row_filter = RowFilter(text, reader.condition(tree), tuple(sorted(reader.columns)))
    row_filter.apply(pa.RecordBatch.from_pylist([], schema=schema))
    return row_filter


class _Reader:
    """Turn a syntax tree into an expression, and collect the columns in it."""

    def __init__(self, text: str, schema: pa.Schema) -> None:
        self._text = text
        self._schema = schema
        self.columns: set[str] = set()

    def condition(self, node: ast.expr) -> Any:
        """Turn a node into an expression that is true or false."""
        match node:
            case ast.BoolOp(op, values):
                parts = [self.condition(value) for value in values]
                result = parts[0]
                for part in parts[1:]:
                    result = result & part if isinstance(op, ast.And) else result | part
                return result
            case ast.UnaryOp(ast.Not(), operand):
                return ~self.condition(operand)
            case ast.Compare(left, operators, others):
                sides = [left, *others]
                result = self._compare(sides[0], operators[0], sides[1])
                for index in range(1, len(operators)):
                    result &= self._compare(sides[index], operators[index], sides[index + 1])
                return result
            case _:
                return self._column(node)  # a column of booleans

    def _compare(self, left: ast.expr, operator: ast.cmpop, right: ast.expr) -> Any:
        match operator:
            case ast.In() | ast.NotIn():
                column = self._column(left)
                values = [self._constant(item) for item in self._items(right)]
                for value in values:
                    self._check_kinds(left, value)
                found = column.isin(values)
                return ~found & column.is_valid() if isinstance(operator, ast.NotIn) else found
            case ast.Is() | ast.IsNot():
                if not (isinstance(right, ast.Constant) and right.value is None):
                    raise self._refused(right)
                column = self._column(left)
                return column.is_null() if isinstance(operator, ast.Is) else column.is_valid()
            case _:
                sides = self._value(left), self._value(right)
                for one, other in ((left, right), (right, left)):
                    if _is_column(one) and not _is_column(other):
                        self._check_kinds(one, self._constant(other))
                return _COMPARE[type(operator)](*sides)

    def _value(self, node: ast.expr) -> Any:
        if _is_column(node):
            return self._column(node)
        return compute.scalar(self._constant(node))

    def _check_kinds(self, column: ast.expr, value: object) -> None:
        """Refuse to compare text with numbers; pyarrow's own message would name compute kernels."""
        name = self._name(column)
        kind = unwrap_type(self._schema.field(name).type)
        if is_text(kind) and not isinstance(value, str):
            raise UsageRefused(
                f"--where {self._text!r}: column {name} holds text: compare it with "
                f"{str(value)!r} in quotes"
            )
        if is_number(kind) and isinstance(value, str):
            wanted = "True or False" if pa.types.is_boolean(kind) else "a number"
            raise UsageRefused(
                f"--where {self._text!r}: column {name} is {kind}: compare it with {wanted}, "
                f"got the text {value!r}"
            )

    def _name(self, node: ast.expr) -> str:
        match node:
            case ast.Name(name):
                return name
            case ast.Call(ast.Name("col"), [ast.Constant(str(name))], []):
                return name
            case _:
                raise self._refused(node)

    def _column(self, node: ast.expr) -> Any:
        name = self._name(node)
        if name not in self._schema.names:
            raise UsageRefused(
                f"--where {self._text!r}: the input has no column {name!r}; "
                f"it has {', '.join(self._schema.names[:20])}"
            )
        self.columns.add(name)
        return compute.field(name)

    def _constant(self, node: ast.expr) -> Any:
        match node:
            case ast.Constant(bool() | int() | float() | str() as value):
                return value
            case ast.UnaryOp(ast.USub(), ast.Constant(int() | float() as value)):
                return -value
            case _:
                raise self._refused(node)

    def _items(self, node: ast.expr) -> list[ast.expr]:
        if isinstance(node, ast.Tuple | ast.List | ast.Set):
            return node.elts
        raise self._refused(node)

    def _refused(self, node: ast.AST) -> UsageRefused:
        part = ast.get_source_segment(self._text.strip(), node) or type(node).__name__
        return UsageRefused(f"--where does not accept {part!r}; allowed are {ALLOWED}")


def _is_column(node: ast.expr) -> bool:
    return isinstance(node, ast.Name | ast.Call)
