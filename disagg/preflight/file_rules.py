"""The model's files: on every node that will load them, whole, and the same.

Way:   Subject with nodes whose ModelFiles are known -> [these rules] -> Problems that name the node
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from disagg.errors import Problem
from disagg.models.facts import folder_here
from disagg.models.text_files import LFS_WHAT
from disagg.preflight.model_files import read_model_files
from disagg.preflight.node_facts import ModelFiles, NodeFacts, outliers
from disagg.preflight.rule import rule
from disagg.preflight.subject import Subject

NAMED_MAX = 3


@rule("sglang #5457", "copy the model to the same folder on every node, or mount it")
def _files_present(subject: Subject) -> Iterator[Problem]:
    """that node's ranks stop at once and the others wait for them in a barrier, for minutes"""
    for node in subject.used_nodes:
        if node.files is not None and node.files.absent:
            yield Problem("model.path", f"{node.files.folder} on node {node.name}: {node.files.absent}")
        elif node.shape.has_model is False:
            yield Problem("model.path", f"is not on node {node.name}")


def problems_here(path: str, revision: str | None) -> list[Problem]:
    """Problems of this machine's copy of the model, if it has one. No cluster is needed for that."""
    folder = folder_here(path, revision)
    if folder is None:
        return []
    files = read_model_files(folder)
    if files.absent:
        return [Problem("model.path", f"{folder}: {files.absent}")]
    return [Problem("model.path", f"{what}; get the model again") for what in _wrong(files, str(folder))]


@rule("sglang #32279", "fetch the model again")
def _files_whole(subject: Subject) -> Iterator[Problem]:
    """older releases leave those weights uninitialised and answer garbage; others stop after loading the rest"""
    for node, files in _copies(subject.used_nodes):
        for what in _wrong(files, f"{files.folder} on node {node.name}"):
            yield Problem("model.path", what)


def _wrong(files: ModelFiles, where: str) -> Iterator[str]:
    for names, wrong in (
        (files.missing, "not there"),
        (files.truncated, "cut short"),
        (files.damaged, "damaged: no JSON, or no UTF-8"),
        (files.pointers, LFS_WHAT),
    ):
        if names:
            more = f" and {len(names) - NAMED_MAX} more" if len(names) > NAMED_MAX else ""
            yield f"{where}: {', '.join(names[:NAMED_MAX])}{more} {wrong}"


@rule("sglang #12157", "copy one version to every node")
def _same_weights(subject: Subject) -> Iterator[Problem]:
    """ranks of two versions of a model make one garbage answer, or prefill's KV means nothing to decode"""
    for which in (lambda files: files.config, lambda files: files.sizes, lambda files: files.content):
        problems = list(_same(list(_copies(subject.used_nodes)), which, "other files than the others have"))
        if problems:
            yield from problems
            return


@rule("", "copy one version to every node")
def _same_tokenizer(subject: Subject) -> Iterator[Problem]:
    """the frontend's token ids would be other words to the engines"""
    return _same(list(_copies(subject.nodes)), lambda files: files.tokenizer, "another tokenizer than the others have")


@rule("dynamo #4769, #8945", "copy the adapter to the same folder on every node, or mount it")
def _adapters(subject: Subject) -> Iterator[Problem]:
    """an engine there could not load it and would not start; or both legs of a request would read two versions of it"""
    nodes = subject.used_nodes
    for name in dict.fromkeys(name for node in nodes for name in node.adapters):
        path = f"model.lora.adapters.{name}"
        copies = [(node, node.adapters[name]) for node in nodes if name in node.adapters]
        for node, files in copies:
            if files.absent:
                yield Problem(path, f"{files.folder} on node {node.name} {files.absent}")
        _, others = outliers((copy, copy[1].digest) for copy in copies)
        for node, files in others:
            yield Problem(path, f"{files.folder} on node {node.name} has other files than the others have")


def _same(
    copies: list[tuple[NodeFacts, ModelFiles]], digest_of: Callable[[ModelFiles], str], what: str
) -> Iterator[Problem]:
    _, others = outliers(((node, files), digest_of(files)) for node, files in copies)
    for node, files in others:
        yield Problem("model.path", f"{files.folder} on node {node.name} has {what}")


def _copies(nodes: Iterable[NodeFacts]) -> Iterator[tuple[NodeFacts, ModelFiles]]:
    return ((node, node.files) for node in nodes if node.files is not None)
