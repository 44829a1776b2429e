"""How a method of a connector is run and which arguments it gets, decided once."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest

from connector_service import (
    AsyncConnector,
    AsyncConnectorBase,
    Registry,
    ResourceMeta,
    SyncConnectorBase,
    TaskCategory,
)
from connector_service.errors import AuthorError
from connector_service.sdk.method import ARGUMENTS, Operation, Style
from connector_service.sdk.registry import Registration


def a_connector(**methods: Any) -> AsyncConnectorBase:
    """Return an async connector with methods of the test's choice."""

    async def whatever(self: Any, **kwargs: Any) -> None: ...

    body = {"create": whatever, "get": whatever, "delete": whatever, **methods}
    return type("Sample", (AsyncConnectorBase,), body)(task_type_name="t")


def registered(connector: Any) -> Registration:
    registry = Registry()
    registry.register(connector)
    return registry.resolve(connector.task_category)


def named(self: Any, resource_meta: Any) -> None: ...
def named_more(self: Any, resource_meta: Any, output_prefix: str) -> None: ...
def swapped(self: Any, output_prefix: str, resource_meta: Any) -> None: ...
def keyword_only(self: Any, *, resource_meta: Any, output_prefix: str = "") -> None: ...
def everything(self: Any, **kwargs: Any) -> None: ...
def named_and_everything(self: Any, resource_meta: Any, **kwargs: Any) -> None: ...
def star_args(self: Any, *args: Any) -> None: ...
def star_args_and_named(self: Any, *args: Any, resource_meta: Any) -> None: ...
def nothing(self: Any) -> None: ...
def own_default(self: Any, resource_meta: Any, retries: int = 3) -> None: ...
def positional_default(
    self: Any, resource_meta: Any = None, /, output_prefix: str = ""
) -> None: ...


@pytest.mark.parametrize(
    ("method", "takes"),
    [
        (named, ("resource_meta",)),
        (named_more, ("resource_meta", "output_prefix")),
        (swapped, ("resource_meta", "output_prefix")),
        (keyword_only, ("resource_meta", "output_prefix")),
        (everything, ("resource_meta", "output_prefix")),
        (named_and_everything, ("resource_meta", "output_prefix")),
        (star_args, ()),
        (star_args_and_named, ("resource_meta",)),
        (nothing, ()),
        (own_default, ("resource_meta",)),
        (positional_default, ("output_prefix",)),
    ],
)
def test_a_method_gets_what_it_can_take(method: Callable[..., Any], takes: tuple[str, ...]) -> None:
    """Named arguments and `**kwargs` are served; what a method cannot take is left out."""
    assert registered(a_connector(get=method)).methods[Operation.GET].takes == takes


@pytest.mark.parametrize("operation", [op for op in ARGUMENTS if op is not Operation.DO])
def test_every_operation_offers_its_own_arguments(operation: Operation) -> None:
    """`**kwargs` takes all that the operation has to give, in the order of the table."""
    methods = registered(a_connector(**{operation: everything})).methods
    assert methods[operation].takes == ARGUMENTS[operation]


def unknown(self: Any, resource_meta: Any, cursor: str) -> None: ...
def unknown_keyword(self: Any, *, cursor: str, **kwargs: Any) -> None: ...
def positional_only(self: Any, resource_meta: Any, /) -> None: ...


@pytest.mark.parametrize(
    ("method", "name"),
    [(unknown, "cursor"), (unknown_keyword, "cursor"), (positional_only, "resource_meta")],
)
def test_an_argument_that_nobody_passes_is_refused_at_registration(
    method: Callable[..., Any], name: str
) -> None:
    """The author reads which method demands what, and what there is, before the first call."""
    with pytest.raises(AuthorError) as caught:
        registered(a_connector(get=method))
    assert str(caught.value) == (
        f"Sample.get demands {name!r}, which the service never passes; it can take resource_meta,"
        " output_prefix, or give it a default."
    )


async def coroutine(self: Any, **kwargs: Any) -> None: ...
def plain(self: Any, **kwargs: Any) -> None: ...
def generator(self: Any, **kwargs: Any) -> Any:
    yield 1


async def async_generator(self: Any, **kwargs: Any) -> Any:
    yield 1


def keeping(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate as most decorators do: a plain function that returns what it wraps returns."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


@pytest.mark.parametrize(
    ("method", "style"),
    [
        (coroutine, Style.COROUTINE),
        (plain, Style.PLAIN),
        (generator, Style.GENERATOR),
        (async_generator, Style.ASYNC_GENERATOR),
        (functools.partialmethod(coroutine, step=1), Style.COROUTINE),
        (functools.partialmethod(generator, step=1), Style.GENERATOR),
        (keeping(coroutine), Style.PLAIN),  # run on a thread; the coroutine it returns is awaited
        (staticmethod(lambda **kwargs: None), Style.PLAIN),
        (classmethod(coroutine), Style.COROUTINE),
    ],
)
def test_the_style_of_a_method_is_found_once(method: Any, style: Style) -> None:
    """Coroutine, plain, generator or async generator, also through partials and class methods."""
    assert registered(a_connector(get_logs=method)).methods[Operation.GET_LOGS].style is style


def test_a_method_set_on_the_instance_counts() -> None:
    """A partial that `__init__` puts on the instance is what will be called."""
    connector = a_connector()
    connector.get = functools.partial(coroutine, connector)  # type: ignore[method-assign]
    method = registered(connector).methods[Operation.GET]
    assert method.function is connector.get
    assert (method.style, method.takes) == (Style.COROUTINE, ("resource_meta", "output_prefix"))


def test_a_decorated_method_keeps_its_arguments() -> None:
    """`functools.wraps` shows the arguments of the method underneath."""
    assert registered(a_connector(get=keeping(named))).methods[Operation.GET].takes == (
        "resource_meta",
    )


def test_optional_operations_count_only_when_they_are_implemented() -> None:
    """Logs and metrics that nobody wrote are absent, so the wire can say so."""
    assert set(registered(a_connector()).methods) == {
        Operation.CREATE,
        Operation.GET,
        Operation.DELETE,
    }
    assert Operation.GET_LOGS in registered(a_connector(get_logs=generator)).methods


def metas_by_another_name(self: Any, metas: Any) -> None: ...
def no_metas(self: Any) -> None: ...


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"get_many": metas_by_another_name}, "Sample.get_many demands 'metas', which the service"),
        ({"get_many": no_metas}, "Sample.get_many does not take 'resource_metas', the list"),
        ({"get_many": named}, "Sample.get_many demands 'resource_meta', which the service"),
        ({"get_many": generator}, "Sample.get_many yields; let it return one list, with a"),
        ({"get_many": async_generator}, "Sample.get_many yields; let it return one list"),
        ({"get_many": everything, "batch_size": 0}, "Sample.batch_size is 0; set it to the most"),
        ({"get_many": everything, "batch_size": True}, "Sample.batch_size is True; set it to"),
        ({"get_many": everything, "batch_size": "9"}, "Sample.batch_size is '9'; set it to"),
    ],
)
def test_a_get_many_that_cannot_answer_for_a_list_is_refused(
    body: dict[str, Any], text: str
) -> None:
    """Its author reads at registration what to change."""
    with pytest.raises(AuthorError) as caught:
        registered(a_connector(**body))
    assert text in str(caught.value)


def test_a_get_many_of_flyte_2_s_shape_takes_the_metas_and_the_connection() -> None:
    """What it demands beyond the metas is the connection's; the metas it must name itself."""
    own: dict[str, Any] = {"create": everything, "get": everything, "delete": everything}
    own |= {"task_type_name": "t", "metadata_type": ResourceMeta}

    def many(self: Any, resource_metas: Any, *, token: str) -> None: ...

    method = registered(type("Second", (AsyncConnector,), {**own, "get_many": many})()).methods[
        Operation.GET_MANY
    ]
    assert (method.takes, method.demands) == (("resource_metas",), ("token",))
    with pytest.raises(AuthorError, match="does not take 'resource_metas'"):
        registered(type("Second", (AsyncConnector,), {**own, "get_many": metas_by_another_name})())


def test_methods_of_other_kinds_are_the_authors_own_affair() -> None:
    """A sync connector's helper called `get`, or an async one's `do`, is never called by us."""

    class Sync(SyncConnectorBase):
        def do(self, **kwargs: Any) -> None: ...

        def get(self, url: str) -> None: ...

        def get_logs(self, day: str) -> None: ...

    def do(self: Any, step: int) -> None: ...

    assert set(registered(Sync(task_type_name="s")).methods) == {Operation.DO}
    assert Operation.DO not in registered(a_connector(do=do)).methods


def test_a_connector_of_both_kinds_has_the_operations_of_both() -> None:
    """One that is sync and async is announced as sync and can also be created."""

    class Both(SyncConnectorBase, AsyncConnectorBase):
        def do(self, **kwargs: Any) -> None: ...

        def create(self, **kwargs: Any) -> None: ...

        def get(self, **kwargs: Any) -> None: ...

        def delete(self, **kwargs: Any) -> None: ...

    registration = registered(Both(task_type_name="b"))
    assert registration.is_sync
    assert {Operation.DO, Operation.CREATE} < set(registration.methods)
    assert registration.category == TaskCategory("b")
