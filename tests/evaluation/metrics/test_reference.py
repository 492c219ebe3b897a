import pickle
import zipfile

import numpy as np
import pytest
import torch

from ucgm.evaluation.metrics import Reference, load_reference, moments_of, save_reference


@pytest.fixture
def statistics():
    return moments_of(torch.randn(100, 6, generator=torch.Generator().manual_seed(0)))


def arrays(g, prefix="", dtype=np.float64):
    return {f"{prefix}mu": g.mean.numpy().astype(dtype), f"{prefix}sigma": g.covariance.numpy()}


def test_ours_round_trip(tmp_path, statistics):
    rows = torch.randn(5, 6)
    made = Reference(
        "cats", statistics, "", statistics, rows, ("digits", "ab" * 32), {"crop": "centre"}
    )
    save_reference(tmp_path / "r.npz", made)
    back = load_reference(tmp_path / "r.npz")
    assert torch.equal(back.gaussian.mean, statistics.mean)
    assert torch.equal(back.gaussian.covariance, statistics.covariance)
    assert back.spatial is not None and torch.equal(back.spatial.mean, statistics.mean)
    assert torch.equal(back.features, rows)
    assert back.extractor == ("digits", "ab" * 32) and back.name == "cats"
    assert back.gaussian.count == 100 and back.protocol["crop"] == "centre"
    assert len(back.digest) == 64
    with np.load(tmp_path / "r.npz", allow_pickle=False) as file:  # readable by other tools
        assert {"mu", "sigma"} <= set(file.files)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("prefix", ["", "ref_"])  # pytorch-fid and EDM; MeanFlow
def test_foreign_npz(tmp_path, statistics, prefix, dtype):
    np.savez(tmp_path / "x.npz", **arrays(statistics, prefix, dtype))
    got = load_reference(tmp_path / "x.npz")
    assert got.gaussian.mean.dtype == torch.float64 and got.gaussian.count is None
    assert torch.allclose(got.gaussian.mean, statistics.mean, atol=1e-6)
    assert got.extractor is None and got.spatial is None


def test_adm_npz_reads_statistics_without_its_images(tmp_path, statistics):
    images = np.zeros((3, 4, 4, 3), np.uint8)
    both = arrays(statistics) | {"mu_s": statistics.mean.numpy() + 1, "arr_0": images}
    np.savez(tmp_path / "adm.npz", sigma_s=statistics.covariance.numpy(), **both)
    got = load_reference(tmp_path / "adm.npz")
    assert got.images == tmp_path / "adm.npz"
    assert got.spatial is not None and torch.equal(got.spatial.mean, statistics.mean + 1)


def test_edm2_pickle_of_arrays_and_nothing_else(tmp_path, statistics):
    path = tmp_path / "edm2.pkl"
    content = {"fid": arrays(statistics), "fd_dinov2": arrays(moments_of(torch.randn(50, 3)))}
    path.write_bytes(pickle.dumps(content))
    assert torch.equal(load_reference(path).gaussian.mean, statistics.mean)
    assert load_reference(path, "fd_dinov2").gaussian.dimension == 3

    class Harm:
        def __reduce__(self):
            return (print, ("executed",))

    path.write_bytes(pickle.dumps({"fid": Harm()}))
    with pytest.raises(ValueError, match="builtins.print"):
        load_reference(path)


def test_damaged_and_foreign_files_are_refused(tmp_path, statistics):
    with pytest.raises(ValueError, match="does not exist"):
        load_reference(tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("not a zip")
    with pytest.raises(ValueError, match="cannot be read"):
        load_reference(tmp_path / "text.npz")
    np.savez(tmp_path / "images.npz", arr_0=np.zeros(3))
    with pytest.raises(ValueError, match="need mu and sigma"):
        load_reference(tmp_path / "images.npz")
    whole = tmp_path / "whole.npz"
    np.savez(whole, **arrays(statistics))
    (tmp_path / "cut.npz").write_bytes(whole.read_bytes()[:200])
    with pytest.raises(ValueError, match="cannot be read"):
        load_reference(tmp_path / "cut.npz")
    crooked = arrays(statistics)
    crooked["sigma"] = crooked["sigma"] + np.triu(np.ones((6, 6)), 1)
    np.savez(tmp_path / "crooked.npz", **crooked)
    with pytest.raises(ValueError, match="not symmetric"):
        load_reference(tmp_path / "crooked.npz")


def test_errors_name_the_file_and_what_is_wrong(tmp_path, statistics):
    good = arrays(statistics)
    for name, changes, reason in (
        ("row", {"mu": good["mu"][None]}, r"need a mean \(d,\)"),
        ("nan", {"mu": good["mu"] * np.nan}, "not finite"),
        ("protocol", {"protocol": np.array("hello")}, "Expecting value"),
        ("number", {"protocol": np.array("3")}, "has no attribute"),
    ):
        np.savez(tmp_path / f"{name}.npz", **(good | changes))
        with pytest.raises(ValueError, match=f"{name}.npz cannot be read: .*{reason}"):
            load_reference(tmp_path / f"{name}.npz")
    with zipfile.ZipFile(tmp_path / "raw.npz", "w") as archive:
        archive.writestr("mu.npy", b"a" * 9999)
    with pytest.raises(ValueError, match="raw.npz cannot be read: its mu is no array"):
        load_reference(tmp_path / "raw.npz")
    np.save(tmp_path / "rows.npy", good["mu"])
    with pytest.raises(ValueError, match="rows.npy cannot be read: it is no npz"):
        load_reference(tmp_path / "rows.npy")
    (tmp_path / "other.pkl").write_bytes(pickle.dumps({"fd_dinov2": good}))
    with pytest.raises(ValueError, match=r"it holds \['fd_dinov2'\], need fid"):
        load_reference(tmp_path / "other.pkl")


def test_another_extractor_is_refused(statistics):
    made = Reference("cats", statistics, "", extractor=("digits", "ab" * 32))
    made.check("digits", "ab" * 32, 6)
    with pytest.raises(ValueError, match="extractor digits .* this is inception"):
        made.check("inception", "cd" * 32, 6)
    with pytest.raises(ValueError, match="this is digits"):
        made.check("digits", "cd" * 32, 6)  # the same name, other weights
    foreign = Reference("adm", statistics, "")
    with pytest.raises(ValueError, match="has 6 features, extractor inception gives 2048"):
        foreign.check("inception", "ab" * 32, 2048)
