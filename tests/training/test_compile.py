"""The same training with compiled blocks and with recomputed activations."""

import shutil
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from tests.forked import job, run_jobs
from tests.runtime.test_sharding import assert_close, config
from tests.training.test_train import same, tiny, weights
from ucgm.objective import Below, preset
from ucgm.runs import checkpoint
from ucgm.runtime.randomness import RowRandom
from ucgm.runtime.sharding import Sharding
from ucgm.training.ema import frozen_copy
from ucgm.training.loop import train
from ucgm.training.networks import compile_blocks, make_networks

# torch.compile writes C++ on a CPU.
needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "c++", "clang++"))), reason="no C++ compiler here"
)

JVP, CENTRAL = preset("ucgm_few", tangent="jvp"), preset("ucgm_few")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    base = replace(tiny(steps=20, log_every=20), objective=preset("flow_matching"))
    return str(train(base, tmp_path_factory.mktemp("teacher") / "run"))


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("objective", [JVP, CENTRAL], ids=["jvp", "central"])
def test_compiled_blocks_train_alike(tmp_path, teacher, objective):
    plain = config(objective, teacher, steps=4, checkpoint_every=4)
    compiled = replace(plain, train=replace(plain.train, compile=True))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    run = train(compiled, tmp_path / "compiled")
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 2
    assert not torch._dynamo.utils.counters["graph_break"]
    assert_close(train(plain, tmp_path / "plain"), run, 4)
    assert same(dict(checkpoint.load_run(run).network.state_dict()), weights(run, 4, "ema"))


@needs_compiler
@pytest.mark.slow
def test_compiled_and_sharded(tmp_path, teacher):
    plain = config(JVP, teacher, steps=4, checkpoint_every=4)
    both = replace(plain, train=replace(plain.train, compile=True, sharding="fsdp2"))
    jobs = [job(plain, tmp_path / "plain", 2), job(both, tmp_path / "both", 2)]
    for codes, output in run_jobs(*jobs):
        assert not any(codes), output
    graphs = int(output.split("'unique_graphs': ")[1].split("}")[0].split(",")[0])
    assert 2 <= graphs <= 8
    assert_close(tmp_path / "plain", tmp_path / "both", 4)


def recomputing(settings):
    return replace(settings, model=replace(settings.model, gradient_checkpointing=True))


@pytest.mark.parametrize("objective", [JVP, CENTRAL], ids=["jvp", "central"])
def test_recomputed_activations_train_alike(tmp_path, teacher, objective):
    plain = config(objective, teacher, steps=4, checkpoint_every=2)
    run = train(plain, tmp_path / "plain")
    other = train(recomputing(plain), tmp_path / "recomputed")
    for name in ("network", "ema", "optimizer"):
        assert same(weights(run, 4, name), weights(other, 4, name))


@pytest.mark.slow
def test_recomputed_and_sharded_with_accumulation(tmp_path, teacher):
    plain = config(JVP, teacher, steps=4, checkpoint_every=4, accumulation=2)
    sharded = recomputing(replace(plain, train=replace(plain.train, sharding="fsdp2")))
    jobs = [job(plain, tmp_path / "plain", 2), job(sharded, tmp_path / "sharded", 2)]
    for codes, output in run_jobs(*jobs):
        assert not any(codes), output
    assert_close(tmp_path / "plain", tmp_path / "sharded", 4)


def test_the_limit_of_programs_has_another_name_in_older_torch(monkeypatch):
    older = SimpleNamespace(cache_size_limit=8)
    monkeypatch.setattr(torch._dynamo, "config", older)
    compile_blocks(torch.nn.Linear(1, 1))
    assert vars(older) == {"cache_size_limit": 32}


@pytest.fixture
def graphs(monkeypatch):
    """The graphs that blocks are compiled to, by a compiler that only counts them."""
    found = []

    def count(graph, inputs):
        found.append(graph)
        return graph.forward

    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=count))
    yield found
    torch._dynamo.reset()


def batch(rows=4):
    return torch.randn(rows, 1, 28, 28), torch.rand(rows), torch.arange(rows)


def test_a_forward_derivative_leaves_blocks_to_the_compiler(graphs):
    objective, (x, t, y) = preset("meanflow", destination=Below(), field="data"), batch()
    network = replace(tiny().model, second_time=True).build((1, 28, 28), 10)
    compile_blocks(network)
    for _ in range(2):  # a pass with gradient, then one under a forward derivative
        objective.terms(network, objective.draw(x, y, 10))
        assert len(graphs) == 1
    with torch.no_grad():  # a pass of another kind, as the next teacher or average makes it
        network(x, t, y, t)
    assert len(graphs) == 2


def test_new_networks_are_compiled_whatever_this_process_has_run(graphs):
    settings, (x, t, y) = tiny(compile=True), batch()
    earlier, network = (settings.model.build((1, 28, 28), 10) for _ in range(2))
    compile_blocks(earlier)
    with sdpa_kernel(SDPBackend.MATH):  # the compiler gives these blocks up
        torch.func.jvp(lambda x: earlier(x, t, y), (x,), (x,))
    assert not graphs
    make_networks(settings, network, Sharding(1, torch.device("cpu"), False))
    network(x, t, y)
    assert len(graphs) == 1


@pytest.mark.parametrize(
    "name, most", [("flow_matching", 1), ("ucgm_multi", 2), ("ucgm_few", 3), ("few_step", 2)]
)
def test_few_graphs_and_no_more_after_the_first_step(graphs, name, most):
    """Six steps, whose passes on some of the rows have other numbers of them in each."""
    objective = preset(name)
    network = replace(tiny().model, **objective.network_inputs).build((1, 28, 28), 10)
    copies = [frozen_copy(network) for _ in range(2)]
    for module in (network, *copies):
        compile_blocks(module)
    for step in range(6):
        x, _, y = batch(12)
        keys = RowRandom.for_rows(0, step, torch.arange(12))
        with torch.autocast("cpu", torch.bfloat16):
            draw = objective.draw(x, y % 10, 10, keys)
            terms = objective.terms(network, draw, target=copies[0], teacher=copies[1])
        terms.loss.backward()
        assert len(graphs) == most
