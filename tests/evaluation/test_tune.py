"""The search for a sampler: its space, its costs, its halving, and the command on a closed form."""

import json

import pytest
import torch
import yaml

from tests.digits_oracle import Affine, Memoriser, make_run
from ucgm.evaluation.references import open_evaluators
from ucgm.evaluation.scoring import MetricConfig
from ucgm.evaluation.tuning.search import FAMILIES, Budget, Candidate, Space, fitted, passes, search
from ucgm.evaluation.tuning.tune import CandidateScorer, default_of, tune_sampler
from ucgm.generation.command import samples_of_run
from ucgm.generation.samples import SamplingConfig
from ucgm.runs.config import from_dict
from ucgm.runs.layers import config_of
from ucgm.sampler import Grid, Guidance, Sampler
from ucgm.transport import Linear

SMALL = Budget(candidates=8, samples=60, rungs=2, final_samples=300, repeats=2)


def test_passes_are_counted_as_the_network_counts_them():
    sampler = Sampler(Linear(), 10)
    assert passes(sampler, Guidance()) == 10
    assert passes(sampler, Guidance(2.0)) == 20
    assert passes(sampler, Guidance(2.0, kind="input")) == 10
    inside = sum(0.2 <= step.t <= 0.6 for step in sampler.plan())
    assert passes(sampler, Guidance(2.0, (0.2, 0.6))) == 10 + inside
    assert passes(Sampler(Linear(), 5, solver="heun"), Guidance()) == 9


def test_budget_is_spent_and_not_exceeded():
    assert fitted(Sampler(Linear()), Guidance(), 6).steps == 6
    assert fitted(Sampler(Linear(), solver="heun"), Guidance(), 6).steps == 3
    assert fitted(Sampler(Linear()), Guidance(2.0), 7).steps == 3
    assert fitted(Sampler(Linear()), Guidance(2.0), 1) is None
    assert fitted(Sampler(Linear(), 2, grid=Grid(explicit=(0.9, 0.5))), Guidance(), 6).steps == 2


@pytest.mark.parametrize("nfe", [1, 2, 4, 9])
def test_the_space_covers_every_solver_within_the_budget(nfe):
    space = Space(Sampler(Linear()), nfe, guided=True)
    found = space.spread(256, seed=0)
    assert {c.family for c in found} == set(space.families) <= set(FAMILIES) - {"jump"}
    costs = [passes(c.sampler, c.guidance) for c in found]
    assert max(costs) <= nfe and min(costs) >= 1
    guided = sum(c.guidance.scale > 1 for c in found)
    assert 0.1 < guided / len(found) < 0.5 or nfe == 1
    assert not any(c.guidance.scale > 1 for c in Space(Sampler(), nfe, guided=False).spread(64, 0))
    two_times = Space(Sampler(), nfe, guided=False, two_times=True)
    assert "jump" in {c.family for c in two_times.spread(64, 0)}
    assert space.spread(16, seed=3) == space.spread(16, seed=3) != space.spread(16, seed=4)


def test_search_finds_the_bottom_of_a_bowl_and_shares_the_samples():
    space = Space(Sampler(Linear()), 8, guided=False)
    seen = []

    def score(candidate, count):
        seen.append((candidate.family, count))
        grid, kappa = candidate.sampler.grid, candidate.sampler.extrapolation
        miss = (grid.warp[0] - 1.1) ** 2 + (grid.gap[1] - 0.1) ** 2 + (kappa - 0.3) ** 2
        return miss + (candidate.family != "ucgm_state")

    default = Candidate(Sampler(Linear(), 8), Guidance(), None, "default")
    best, trials = search(space, default, score, Budget(64, 100, 2), seed=1)
    assert best.family == "ucgm_state" and score(best, 0) < 0.05
    rounds = [[t.score for t in trials if t.round == r and t.rung == 2] for r in (1, 2)]
    assert min(rounds[1]) < min(rounds[0])  # the second round comes closer
    assert {t.samples for t in trials} == {100, 300}
    sizes = [sum(t.round == 1 and t.rung == r for t in trials) for r in (1, 2)]
    assert sizes[0] > 60 and sizes[1] == -(-(sizes[0] - 1) // 3) + 1
    per_rung = [(t.round, t.rung) for t in trials if t.candidate is default]
    assert per_rung == [(1, 1), (1, 2), (2, 1), (2, 2)]


def test_scores_do_not_depend_on_how_far_others_got():
    run = make_run("run", Affine())
    scorer = make_scorer(run)
    default = default_of(run, 4)
    once = scorer(default, 90)
    again = make_scorer(run)
    again(default, 30)
    assert again(default, 90) == pytest.approx(once, rel=1e-6)
    assert scorer.images == 90 and again.images == 90


def make_scorer(run, seed=0):
    base = samples_of_run(run, SamplingConfig(seed=seed))
    evaluators = open_evaluators(MetricConfig(), run.config.data, base.data)
    return CandidateScorer(base, evaluators.parts[0], "fid")


class Exploding(torch.nn.Module):
    """A network whose samples are not finite."""

    def forward(self, x_t, t, y, s=None):
        return x_t * torch.inf


def test_a_sampler_that_diverges_has_an_infinite_score():
    run = make_run("run", Exploding())
    scorer = make_scorer(run)
    assert scorer(default_of(run, 2), 20) == float("inf")
    assert scorer.repeated(default_of(run, 2), 20, 3) == {"fid": [float("inf")] * 3}


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return tune_sampler(make_run(folder, Memoriser()), 3, SMALL, metric="fid", device="cpu")


def test_the_winner_beats_the_default_on_the_held_out_seed(tuned):
    held_out = tuned["held_out"]
    assert tuned["kept"] == "tuned" and tuned["held_out_seed"] == 1
    assert max(held_out["tuned"]["fid"]) < min(held_out["default"]["fid"])
    assert all(len(v) == 2 for s in held_out.values() for v in s.values())
    assert "fid_heldout" in held_out["tuned"]
    assert tuned["tuned"]["passes"] <= 3 and tuned["default"]["passes"] == 3


def test_the_final_figures_are_those_of_seed_one(tuned):
    sampler = from_dict(Sampler, tuned["tuned"]["sampler"])
    guidance = from_dict(Guidance, tuned["tuned"]["guidance"])
    scorer = make_scorer(make_run("run", Memoriser()), seed=1)
    score = scorer(Candidate(sampler, guidance, None, "tuned"), 300)
    assert score == pytest.approx(tuned["held_out"]["tuned"]["fid"][0], rel=1e-5)
    assert all(trial["samples"] in (60, 180) for trial in tuned["trials"])


def test_what_is_written_can_be_layered(tuned):
    from pathlib import Path

    folder = Path(tuned["folder"])
    assert {p.name for p in folder.iterdir()} == {
        "protocol.json", "sampler.yaml", "trace.json", "trace.png"
    }  # fmt: skip
    path = folder / "sampler.yaml"
    sections = yaml.safe_load(path.read_text())
    assert from_dict(Sampler, sections["sampler"]).nfe <= 3
    config = config_of(["--config", "configs/digits.yaml", "--config", str(path)])
    assert config.sampler == from_dict(Sampler, tuned["tuned"]["sampler"])
    assert config.guidance == from_dict(Guidance, tuned["tuned"]["guidance"])
    trace = json.loads((folder / "trace.json").read_text())
    assert len(trace["trials"]) > 8
    assert (folder / "trace.png").read_bytes()[:4] == b"\x89PNG"


def test_bad_input(tmp_path):
    run = make_run(tmp_path)
    with pytest.raises(ValueError, match="nfe"):
        tune_sampler(run, 0)
    with pytest.raises(ValueError, match="budget.samples must be at least 10, got 5"):
        Budget(samples=5)
    with pytest.raises(ValueError, match="repeats"):
        Budget(repeats=0)
    with pytest.raises(ValueError, match="raise --nfe"):
        tune_sampler(make_run(tmp_path, guidance=Guidance(2.0)), 1)
    with pytest.raises(ValueError, match="autoguidance"):
        tune_sampler(make_run(tmp_path, guidance=Guidance(2.0, kind="auto", guide="x")), 4)
    with pytest.raises(ValueError, match="is .* a run folder"):
        tune_sampler(str(tmp_path / "nothing"), 4)
    with pytest.raises(ValueError, match="mean nothing here: guidance is searched"):
        tune_sampler(run, 4, settings=SamplingConfig(guidance_scale=2.0))
    with pytest.raises(ValueError, match="one extractor"):
        tune_sampler(run, 4, metrics_config=MetricConfig(extractor=("digits", "inception")))
