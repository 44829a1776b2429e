"""Types, values and equality that both ends of the differential tests share.

The peers import this inside an SDK's environment, the tests in ours, so it needs only the standard
library and pydantic. Values travel as the source text of an expression over these names. There is
no ``from __future__ import annotations``: flytekit reads the annotations as they stand.
"""

# ruff: noqa: UP006, UP007, UP035, UP045 - the older spellings are what tasks in the wild have

import dataclasses
import datetime
import enum
import math
import typing
from typing import Any, Dict, List, NamedTuple, Optional, Tuple, Union

from pydantic import BaseModel

inf, nan = math.inf, math.nan
utc = datetime.timezone.utc  # noqa: UP017 - a name for expressions
east = datetime.timezone(datetime.timedelta(hours=5, minutes=30))


class Color(enum.Enum):
    RED = "red"
    GREEN = "green"


class Crossed(enum.Enum):
    """An enum whose names are the other member's values: by name or by value is not a guess."""

    A = "B"
    B = "A"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


@dataclasses.dataclass
class Point:
    x: int
    y: float = 0.0


@dataclasses.dataclass
class Report:
    title: str
    at: datetime.datetime
    took: datetime.timedelta
    day: datetime.date
    color: Color
    origin: Point
    path: List[Point]
    names: Dict[str, int]
    sizes: Dict[int, str]
    pair: Tuple[int, str]
    raw: bytes
    note: Optional[str] = None
    ok: bool = True
    tags: typing.Set[int] = dataclasses.field(default_factory=set)
    either: Union[int, str, None] = None
    nested: Optional[Dict[str, List[Point]]] = None


@dataclasses.dataclass
class Plain:
    title: str
    sizes: List[int]
    counts: Dict[str, int]
    origin: Point
    maybe: Optional[int] = None
    path: Optional[List[Point]] = None


@dataclasses.dataclass
class Node:
    name: str
    next: Optional["Node"] = None


class Model(BaseModel):
    name: str
    count: int = 0
    color: Color = Color.RED
    at: Optional[datetime.datetime] = None
    took: datetime.timedelta = datetime.timedelta(0)
    points: List[Point] = []
    by_name: Dict[str, "Inner"] = {}


class Inner(BaseModel):
    value: float
    level: Color = Color.GREEN


Model.model_rebuild()


class Named(NamedTuple):
    a: int
    b: str


class Typed(typing.TypedDict):
    a: int
    b: List[str]


REPORT = (
    "Report('t', datetime.datetime(2024, 1, 2, 3, 4, 5, 6), "
    "datetime.timedelta(days=1, microseconds=5), datetime.date(2024, 1, 2), Color.GREEN, "
    "Point(1, 2.5), [Point(3), Point(4, 5.0)], {'a': 1}, {1: 'one'}, (1, 'x'), b'\\x00\\xff', "
    "tags={3}, either='s', nested={'k': [Point(9)]})"
)
MODEL = (
    "Model(name='m', count=2, color=Color.GREEN, at=datetime.datetime(2024, 1, 1), "
    "took=datetime.timedelta(hours=36), points=[Point(1, 2.0)], by_name={'i': Inner(value=1.5)})"
)

COMMON = [
    ("int", "0"),
    ("int", "-7"),
    ("int", "2**63 - 1"),
    ("int", "-2**63"),
    ("float", "0.0"),
    ("float", "-0.5"),
    ("float", "1e300"),
    ("float", "5e-324"),
    ("float", "inf"),
    ("float", "-inf"),
    ("float", "nan"),
    ("str", "''"),
    ("str", "'na\\u00efve \\U0001f642 \\x00 line\\n'"),
    ("bool", "True"),
    ("bool", "False"),
    ("type(None)", "None"),
    ("datetime.datetime", "datetime.datetime(2024, 2, 29, 1, 2, 3, 456789, tzinfo=utc)"),
    ("datetime.datetime", "datetime.datetime(2024, 1, 1, tzinfo=east)"),
    ("datetime.datetime", "datetime.datetime(2024, 1, 1, 12, 30)"),
    ("datetime.datetime", "datetime.datetime(1, 1, 1, tzinfo=utc)"),
    ("datetime.datetime", "datetime.datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=utc)"),
    ("datetime.date", "datetime.date(1969, 12, 31)"),
    ("datetime.date", "datetime.date(2024, 2, 29)"),
    ("datetime.timedelta", "datetime.timedelta(0)"),
    ("datetime.timedelta", "datetime.timedelta(days=-3, microseconds=1)"),
    ("datetime.timedelta", "datetime.timedelta(days=400, seconds=1, microseconds=999999)"),
    ("List[int]", "[]"),
    ("List[int]", "[1, -2, 3]"),
    ("List[str]", "['', 'x']"),
    ("List[List[float]]", "[[], [1.5, inf]]"),
    ("List[datetime.datetime]", "[datetime.datetime(2024, 1, 1, tzinfo=utc)]"),
    ("Dict[str, int]", "{}"),
    ("Dict[str, int]", "{'a': 1, '': 2, 'odd key': 3}"),
    ("Dict[str, List[bool]]", "{'a': [True], 'b': []}"),
    ("Dict[str, Dict[str, str]]", "{'a': {'b': 'c'}, 'd': {}}"),
    ("List[Dict[str, float]]", "[{}, {'a': 1.0}]"),
    ("dict", "{}"),
    ("dict", "{'a': 1, 'b': [1.5, None, True, 'x'], 'c': {'d': {}}}"),
    ("dict", "{1: 2, 'a': 3, None: 4, 2.5: 5}"),
    ("dict", "{'raw': b'\\x00\\xff', 'inf': inf, 'max': 2**64 - 1, 'min': -2**63}"),
    ("Dict[int, str]", "{1: 'a', -5: 'b'}"),
    ("List[dict]", "[{}, {'a': 1}]"),
    ("Optional[int]", "3"),
    ("Optional[int]", "None"),
    ("Optional[str]", "''"),
    ("Union[int, str]", "1"),
    ("Union[int, str]", "'1'"),
    ("Union[str, float, bool, None]", "True"),
    ("Union[str, float, bool, None]", "2.0"),
    ("Union[int, List[str]]", "['a', 'b']"),
    ("Union[int, List[str], Dict[str, int]]", "{'a': 1}"),
    ("Union[int, datetime.timedelta]", "datetime.timedelta(seconds=1)"),
    ("List[Optional[int]]", "[1, None, 2]"),
    ("Dict[str, Union[int, str, None]]", "{'a': 1, 'b': 'x', 'c': None}"),
    ("Optional[List[Optional[Dict[str, int]]]]", "[None, {'a': 1}]"),
    ("Optional[Point]", "Point(1, 2.0)"),
    ("Optional[Point]", "None"),
    ("Union[int, Point]", "Point(3, 4.0)"),
    ("Color", "Color.RED"),
    ("Crossed", "Crossed.A"),
    ("List[Crossed]", "[Crossed.A, Crossed.B]"),
    ("Optional[Crossed]", "Crossed.B"),
    ("Optional[Color]", "Color.GREEN"),
    ("Dict[str, Color]", "{'a': Color.RED}"),
    ("Point", "Point(1)"),
    ("Point", "Point(2**53 + 1, -1.5)"),
    ("List[Point]", "[Point(1), Point(2, 2.5)]"),
    ("Dict[str, Point]", "{'a': Point(1)}"),
    ("Plain", "Plain('t', [1, 2], {'a': 1}, Point(1), 4, [Point(5, 6.0)])"),
    ("Node", "Node('a', Node('b', None))"),
    ("Report", REPORT),
    ("List[Report]", f"[{REPORT}]"),
    ("Model", "Model(name='m')"),
    ("Model", MODEL),
    ("List[Model]", f"[{MODEL}]"),
    ("Optional[Model]", MODEL),
    ("File", "file('s3://bucket/key')"),
    ("List[File]", "[file('s3://bucket/a'), file('s3://bucket/b')]"),
    ("Optional[File]", "file('s3://bucket/a')"),
    ("Directory", "directory('s3://bucket/prefix')"),
    ("Dataset", "dataset('s3://bucket/table', 'csv')"),
    ("Optional[Dataset]", "dataset('s3://bucket/table', 'parquet')"),
]

# What propeller hands a task that binds one field of a dataclass: the field's plain content.
FRAGMENTS = [
    ("int", "3", "3"),
    ("float", "2.5", "2.5"),
    ("str", "'x'", "'x'"),
    ("bool", "True", "True"),
    ("Optional[int]", "None", "None"),
    ("Optional[str]", "'x'", "'x'"),
    (
        "datetime.datetime",
        "datetime.datetime(2024, 1, 1, tzinfo=utc)",
        "'2024-01-01T00:00:00+00:00'",
    ),
    ("datetime.datetime", "datetime.datetime(2024, 1, 1)", "'2024-01-01T00:00:00'"),
    ("datetime.date", "datetime.date(2024, 1, 1)", "'2024-01-01'"),
    ("datetime.timedelta", "datetime.timedelta(seconds=1.5)", "1.5"),
    ("List[int]", "[1, 2]", "[1, 2]"),
    ("List[List[float]]", "[[1.5], []]", "[[1.5], []]"),
    ("Dict[str, int]", "{'a': 1}", "{'a': 1}"),
    ("Dict[int, str]", "{1: 'a'}", "{1: 'a'}"),
    ("dict", "{'a': {1: None}}", "{'a': {1: None}}"),
    ("Point", "Point(1, 2.0)", "{'x': 1, 'y': 2.0}"),
    ("List[Point]", "[Point(1)]", "[{'x': 1, 'y': 0.0}]"),
    ("Color", "Color.RED", "'red'"),
]

# What flytekit still writes when FLYTE_USE_OLD_DC_FORMAT is set: a protobuf Struct.
OLD = [
    ("Point", "Point(2, 3.0)"),
    ("Point", "Point(-7, 0.5)"),
    ("List[Point]", "[Point(1), Point(2)]"),
    ("Dict[str, Point]", "{'a': Point(1)}"),
    ("Optional[Point]", "Point(1, 2.0)"),
    ("Dict[int, str]", "{1: 'a'}"),
    ("Dict[int, float]", "{1: 2.0}"),
    ("dict", "{'a': 'x', 'b': [True, None], 'c': {}}"),
    ("dict", "{'a': 1.5}"),
    ("Plain", "Plain('t', [1, 2], {'a': 1}, Point(1), 4, [Point(5, 6.0)])"),
    ("Model", "Model(name='m', count=3, points=[Point(1, 2.0)])"),
]

FLYTEKIT = [
    ("CsvFile", "file('s3://bucket/key.csv', 'csv')"),
    ("Failure", "failure('it broke', 'n0')"),
    ("typing.Literal['a', 'b']", "'b'"),
    ("typing.Literal[1, 2]", "2"),
]

FLYTE = [
    ("Level", "Level.HIGH"),
    ("Optional[Level]", "Level.LOW"),
    ("Tuple[int, str]", "(1, 'x')"),
    ("tuple[int, Color, datetime.timedelta]", "(1, Color.GREEN, datetime.timedelta(days=1))"),
    ("List[Tuple[int, str]]", "[(1, 'x'), (2, 'y')]"),
    ("Named", "Named(1, 'x')"),
    ("Typed", "{'a': 1, 'b': ['x']}"),
    ("int | None", "3"),
    ("list[int | None]", "[1, None]"),
    ("dict[str, list[int]]", "{'a': [1]}"),
]


def same(one: Any, other: Any) -> bool:
    """Compare as a user would: NaN is NaN, a naive datetime is UTC, and True is not 1."""
    if isinstance(one, float) and isinstance(other, float):
        return one == other or (math.isnan(one) and math.isnan(other))
    if type(one) is not type(other):
        return False
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, datetime.datetime):
        return aware(one) == aware(other)
    return bool(one == other)


def aware(moment: datetime.datetime) -> datetime.datetime:
    return moment if moment.tzinfo else moment.replace(tzinfo=utc)
