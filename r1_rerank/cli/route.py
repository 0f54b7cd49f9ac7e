"""`r1-rerank route`: the LLM of a pool that serves a query best."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from ..budget import Budget
from ..documents import Document
from ..errors import DataError, InputError, InputTypeError
from ..rows import Objective
from ..tasks import Routing
from .calibration import Target, calibrate_option, run_calibration
from .console import FAILED, note, one_line, print_error
from .model_options import (
    BatchSize,
    Device,
    Dtype,
    Engine,
    EngineOption,
    LabelSeed,
    ModelName,
    ModelOptions,
    Passes,
    Think,
    read_engine_options,
    read_templates,
)
from .queries import Query, parse_record, read_lines, reason_of, require_encodable
from .rerank import budget_option, input_option, model_option, output_option
from .results import Format
from .stdout import format_for, write_json

if TYPE_CHECKING:
    from ..integrations.router import LLMProfile, R1Router, RoutingDecision
    from ..reranker import R1Reranker


def route(
    pool: Annotated[
        Path, input_option("--pool", "-p", metavar="FILE", help="LLMs to choose among, as YAML or JSON, see above.")
    ],
    query: Annotated[str | None, typer.Argument(metavar="QUERY", help="What the LLM shall answer.")] = None,
    input: Annotated[
        str | None,
        input_option("--input", "-i", metavar="FILE", help="A query a line as JSON, see above; - is standard input."),
    ] = None,
    objective: Annotated[Objective, input_option(help="What to judge by.")] = "performance",
    max_price: Annotated[
        float | None,
        input_option(min=0, metavar="USD", help="Highest price per million tokens, mean of input and output."),
    ] = None,
    min_context: Annotated[int | None, input_option(min=1, metavar="TOKENS", help="Least context length.")] = None,
    tag: Annotated[
        list[str] | None, input_option(metavar="TAG", help="A tag that LLMs must have; once for each.")
    ] = None,
    model: ModelName = None,
    engine: Engine = "transformers",
    engine_option: EngineOption = None,
    strategy: Annotated[
        str | None,
        model_option(
            metavar="NAME", help="iranker (worst out, step by step) or dranker (one answer) (default: the model's own)."
        ),
    ] = None,
    think: Think = None,
    template: Annotated[
        Path | None, model_option(metavar="FILE", help="YAML with your own wording of the routing task.")
    ] = None,
    label_seed: LabelSeed = None,
    passes: Passes = 1,
    device: Device = None,
    dtype: Dtype = None,
    batch_size: BatchSize = None,
    budget_calls: Annotated[int | None, budget_option(min=1, metavar="N", help="Calls of the model.")] = None,
    budget_tokens: Annotated[int | None, budget_option(min=1, metavar="N", help="Tokens computed.")] = None,
    budget_thinking: Annotated[int | None, budget_option(min=1, metavar="N", help="Tokens of thinking.")] = None,
    budget_seconds: Annotated[float | None, budget_option(metavar="N", help="Seconds.")] = None,
    on_error: Annotated[
        Literal["partial", "raise"],
        budget_option(help="If the engine fails: the best order so far, or a failed query (exit code 1)."),
    ] = "partial",
    trace: Annotated[bool, output_option("--trace", help="Show every step with its reasoning.")] = False,
    output: Annotated[
        Format | None, output_option(help="What decisions look like (default: table on a terminal, else jsonl).")
    ] = None,
    log: Annotated[
        Path | None,
        output_option(metavar="FILE", help="Append decisions there, for outcomes and training."),
    ] = None,
    calibrate: Annotated[
        str | None,
        calibrate_option(metavar="FILE", help="In place of --input: queries to find the price ceiling by, see above."),
    ] = None,
    spend: Annotated[
        float | None, calibrate_option(min=0, metavar="USD", help="Most to spend on a thousand queries.")
    ] = None,
    input_tokens: Annotated[
        int | None, calibrate_option(min=0, metavar="N", help="Tokens that a query and its context have, on average.")
    ] = None,
    output_tokens: Annotated[
        int | None, calibrate_option(min=0, metavar="N", help="Tokens that an answer has, on average.")
    ] = None,
    plot: Annotated[
        Path | None, calibrate_option(metavar="FILE", help="Draw shares and spend there, as .png, .svg or .pdf.")
    ] = None,
) -> None:
    """Choose the LLM that answers a query best, within hard limits.

    A pool:
    [{"name": "small", "description": "…"}, …]
    Optional: "input_price", "output_price" (US dollars per million tokens),
    "context_length", "tags".

    A line of an input file:
    {"id": "q1", "query": "…"}
    Optional: "id", "objective".

    A calibration routes a sample of queries under each price ceiling and chooses
    the one that spends most within --spend: a value for --max-price.
    """
    from ..integrations.router import R1Router, load_pool
    from ..integrations.routing_log import DecisionLog
    from ..integrations.routing_pool import Limits

    options = ModelOptions(
        model=model,
        engine=engine,
        strategy=strategy,
        think=think,
        templates=read_templates([template] if template else []),
        budget=Budget(
            calls=budget_calls, tokens=budget_tokens, thinking_tokens=budget_thinking, seconds=budget_seconds
        ),
        on_error=on_error,
        label_seed=label_seed,
        engine_options=read_engine_options(engine_option or (), device=device, dtype=dtype, batch_size=batch_size),
        passes=passes,
    )
    options.check()
    if template is not None and "routing" not in options.templates:
        raise InputError("template", f"{template} words another task; pass one for routing")
    profiles = load_pool(pool)
    limits: dict[str, Any] = {"max_price": max_price, "min_context": min_context, "required_tags": tag or ()}
    eligible, _ = Limits(**limits).split(profiles)
    target = Target.of(
        calibrate,
        spend=spend,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        plot=plot,
        unused={"query": query, "input": input, "trace": trace, "log": log},
    )
    if target is not None:
        target.check(eligible)
        sample = _sample(calibrate, objective)
        run_calibration(target, sample, options, partial(R1Router, profiles, objective=objective, **limits), output)
        return
    if log is not None:
        DecisionLog(log)
    queries = _queries(input, query, objective)
    if not queries:
        note(f"{input}: holds no queries")
    many, statuses = len(queries) > 1, Counter[str]()
    records: dict[int, dict[str, Any]] = {}
    format = format_for(output)
    for number, decision in _routed(queries, options, partial(R1Router, profiles, **limits, log=log)):
        asked, result = queries[number], decision.result
        statuses[result.status] += 1
        if format == "table":
            _print(asked, decision, trace=trace, heading=many)
        elif format == "jsonl":
            write_json(decision.to_dict(id=asked.id, trace=trace))
        else:
            records[number] = decision.to_dict(id=asked.id, trace=trace)
        if result.error is not None:
            print_error(f"query {asked.id}: {result.error}" if many else str(result.error))
    if format == "json":
        ordered = [records[number] for number in sorted(records)]
        write_json(ordered[0] if len(ordered) == 1 else ordered, indent=2)
    if many and set(statuses) != {"ok"}:
        note(f"{len(queries)} queries: {', '.join(f'{count} {status}' for status, count in statuses.items())}")
    if statuses["failed"]:
        raise typer.Exit(FAILED)


def _routed(
    queries: Sequence[Query], options: ModelOptions, router: Callable[[R1Reranker], R1Router]
) -> Iterator[tuple[int, RoutingDecision]]:
    """Loads the model where there is something to route."""
    if queries:
        with options.load() as reranker:
            yield from router(reranker).route_iter([cast("Routing", query.task) for query in queries])


def _queries(source: str | None, query: str | None, objective: Objective) -> list[Query]:
    if source is None:
        if query is None:
            raise InputError("query", "pass a query, or --input FILE")
        require_encodable("query", [query])
        return [Query(None, Routing(query, objective), ())]
    if query is not None:
        raise InputError("query", "stands beside --input, which brings its own; pass one of the two")
    queries, unused = list[Query](), set[str]()
    for number, line in read_lines(source):
        try:
            record = parse_record(line)
            queries.append(_query(record, number, objective))
        except (InputError, UnicodeDecodeError) as error:
            raise DataError(source, number, reason_of(error)) from error
        unused |= record.keys() - {"id", "query", "objective"}
    if unused:
        note(f"{source}: not used: {', '.join(sorted(unused))}")
    return queries


def _sample(source: str | None, objective: Objective) -> list[str]:
    """The texts of a file of queries, all of them judged alike."""
    tasks = [cast("Routing", query.task) for query in _queries(source, None, objective)]
    if not tasks:
        raise InputError("--calibrate", f"{source} holds no queries; pass a sample of the traffic")
    if any(task.objective != objective for task in tasks):
        note(f"{source}: a calibration has one objective, {objective}; those of the lines are not used")
    return [task.query for task in tasks]


def _query(record: Mapping[str, Any], number: int, objective: Objective) -> Query:
    id, query, own = (record.get(key) for key in ("id", "query", "objective"))
    if id is not None and not isinstance(id, str):
        raise InputTypeError("id", f"expected a string, got {id!r}; write it in quotes")
    if query is None:
        raise InputError("query", "is missing; pass what the LLM shall answer")
    return Query(str(number) if id is None else id, Routing(query, objective if own is None else own), ())


def _print(query: Query, decision: RoutingDecision, *, trace: bool, heading: bool) -> None:
    """Prints the LLMs that the limits rule out, and the others like any ranking, under their names."""
    from rich.console import Console
    from rich.text import Text

    from .tables import print_result

    console = Console()
    for name, reason in decision.excluded.items():
        console.print(Text(one_line(f"{name} is out: {reason}"), "dim"))
    hits = [
        replace(hit, document=Document(_described(ranked.profile), id=ranked.profile.name))
        for hit, ranked in zip(decision.result, decision.ranking, strict=True)
    ]
    documents = tuple(hit.document for hit in sorted(hits, key=lambda hit: hit.index))
    result = replace(decision.result, ranking=tuple(hits))
    print_result(console, replace(query, documents=documents), result, trace=trace, heading=heading)


def _described(profile: LLMProfile) -> str:
    price = "price unknown" if profile.price is None else f"${profile.price:g}"
    return f"{price}: {profile.description}"
