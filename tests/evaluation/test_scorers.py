"""Scorers: native ones against their functions, pyiqa's through a stand-in with its interface.

The stand-in fetches weights by the ways pyiqa and its parts do: torch.hub, urllib, the hub cache.
"""

import hashlib
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
from convert import call, filled
from huggingface_hub import constants
from refusals import one_line
from skimage.data import astronaut

from osdhuman_jax.evaluation import niqe, scorers
from osdhuman_jax.evaluation.metrics import METRICS, psnr_rgb, psnr_y, ssim_rgb, ssim_y
from osdhuman_jax.evaluation.scorers import MissingMetric, open_scorer
from osdhuman_jax.images.codec import to_float, write_png
from osdhuman_jax.networks.configs import LPIPSConfig
from osdhuman_jax.networks.lpips import LPIPS

PYIQA = """
import urllib.request
from pathlib import Path

import torch
from huggingface_hub import hf_hub_download

__version__ = "0.0.1"
URL = "https://example.org/weights/"
REPOSITORY = "timm/vit_base_patch8_224.augreg2_in21k_ft_in1k"


def by_hub(name):
    path = Path(torch.hub.get_dir()) / "pyiqa" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        print("Downloading", URL + name)
        torch.hub.download_url_to_file(URL + name, str(path))
    return float(path.read_text())


def by_urllib(name):
    with urllib.request.urlopen(URL + name) as source:
        assert int(source.info().get("Content-Length"))
        return float(source.read())


class Metric:
    def __init__(self, name, scale):
        self.metric_mode = "FR" if name in ("dists", "topiq_fr", "afine_all_scale") else "NR"
        self.name, self.scale = name, scale

    def __call__(self, x, reference=None, **options):
        if self.name == "fid":
            assert options == {"num_workers": 0, "verbose": False}
            return torch.tensor(len(list(Path(x).iterdir())) + 0.5)
        assert x.dtype == torch.float32 and 0 <= x.min() and x.max() <= 1 + 1e-6
        x = x if reference is None else (x - reference).abs()
        return self.scale * x.mean(dim=(1, 2, 3))[:, None] + (
            len(x) if self.name in ("musiq", "ilniqe", "afine_all_scale") else 0
        )


def list_models():
    names = "clipiqa maniqa-pipal musiq lpips liqe tres ilniqe dists topiq_fr fid afine_all_scale"
    return names.split()


def create_metric(name, **options):
    assert options == ({"backbone_pretrain": False} if name == "topiq_fr" else {})
    if name == "liqe":
        return Metric(name, by_urllib("ViT-B-32.pt") * by_hub("liqe_koniq.pt"))
    if name == "musiq":
        return Metric(name, 1.0)
    if name == "clipiqa":
        return Metric(name, by_urllib("RN50.pt"))
    if name == "maniqa-pipal":
        path = hf_hub_download(REPOSITORY, "model.safetensors")
        return Metric(name, float(Path(path).read_text()))
    if name == "lpips":
        raise RuntimeError("operator torchvision::nms does not exist\\nlong story")
    return Metric(name, by_hub(name + ".mat"))
"""


@pytest.fixture
def pyiqa(tmp_path, monkeypatch):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "pyiqa.py").write_text(PYIQA)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.delitem(sys.modules, "pyiqa", raising=False)
    yield
    sys.modules.pop("pyiqa", None)


@pytest.fixture
def weights(tmp_path):
    folder = tmp_path / "weights"
    (folder / "deep").mkdir(parents=True)
    names = "tres dists fid ilniqe topiq_fr afine_all_scale".split()
    for name in (
        *(f"deep/{name}.mat" for name in names),
        "RN50.pt",
        "ViT-B-32.pt",
        "liqe_koniq.pt",
    ):
        (folder / name).write_text("2.0")
    return folder


def batch(seed: int = 0, count: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 24, 32, 3)).astype(np.uint8)


def test_native_scorers():
    a, b = batch(0), batch(1)
    rgb = {"psnr-rgb": psnr_rgb, "ssim-rgb": ssim_rgb}
    for name, measure in ({"psnr": psnr_y, "ssim": ssim_y} | rgb).items():
        scorer = open_scorer(METRICS[name], None, None)
        assert scorer.score(a, b) == [measure(x, y) for x, y in zip(a, b, strict=True)]
        assert scorer.identity["weights"] == {}


def test_lpips_of_a_model_folder(monkeypatch, tmp_path):
    """The network of the part that was imported, on [-1, 1]; its file's digest."""
    network = filled(lambda rngs: LPIPS(LPIPSConfig((4, 0, 4)), rngs=rngs), 0)
    (tmp_path / "lpips.safetensors").write_bytes(b"x")
    monkeypatch.setattr(scorers, "load_part", lambda folder, name: network)
    scorer = open_scorer(METRICS["lpips-vgg"], None, tmp_path)
    a, b = batch(0), batch(1)
    expected = call(network, to_float(a), to_float(b))
    np.testing.assert_allclose(scorer.score(a, b), expected, rtol=1e-5)
    assert len(scorer.identity["weights"]["lpips.safetensors"]) == 64


def test_lpips_without_its_weights(tmp_path):
    with pytest.raises(MissingMetric, match="--lpips"):
        open_scorer(METRICS["lpips-vgg"], None, None)
    with pytest.raises(MissingMetric):
        open_scorer(METRICS["lpips-vgg"], None, tmp_path)


def test_pictures_are_scaled_as_on_a_gpu():
    values = np.arange(256, dtype=np.uint8).reshape(1, 1, 256, 1).repeat(3, axis=-1)
    unit = scorers.to_unit(values)
    assert unit.shape == (1, 3, 1, 256) and unit.dtype == np.float32
    exact = np.arange(256) / 255
    np.testing.assert_allclose(unit[0, 0, 0], exact, rtol=1.5e-7)
    assert (unit[0, 0, 0] != exact.astype(np.float32)).any()  # the reciprocal shows


def test_without_a_reference(pyiqa, weights):
    scorer = open_scorer(METRICS["tres"], weights, None)
    expected = 2 * batch().mean(axis=(1, 2, 3)) / 255
    np.testing.assert_allclose(scorer.score(batch(), None), expected, rtol=1e-6)
    assert scorer.identity["library"] == f"pyiqa 0.0.1, torch {torch.__version__}"
    assert list(scorer.identity["weights"]) == ["tres.mat"]
    assert len(scorer.identity["weights"]["tres.mat"]) == 64


PARAMETERS = {"mu_pris_param": np.linspace(0.5, 2, 36), "cov_pris_param": 0.1 * np.eye(36)}


def test_niqe_needs_its_parameters_and_nothing_installed(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "pyiqa", None)
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "deep").mkdir()
    path = tmp_path / "deep" / "niqe_pris_params.npz"
    np.savez(path, **PARAMETERS)
    scorer = open_scorer(METRICS["niqe"], tmp_path, None)
    pictures = np.stack([astronaut(), astronaut()[::-1]])
    model = niqe.read_parameters(path)
    assert scorer.score(pictures, None) == [model(picture) for picture in pictures]
    assert scorer.score(pictures, None)[0] == pytest.approx(30.620014, abs=1e-4)  # pyiqa 0.1.16's
    identity = scorer.identity
    assert identity["variant"] == "Y of YIQ, blocks of 96, no border crop"
    assert identity["library"].startswith("osdhuman-jax ") and "scipy" in identity["library"]
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert identity["weights"] == {path.name: digest} and identity["version"] == niqe.VERSION
    with pytest.raises(ValueError, match="two blocks of 96 x 96 pixels that are not flat"):
        scorer.score(batch(), None)


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        (None, "needs niqe_modelparameters.mat .* or niqe_pris_params.npz .* below --weights"),
        ({"mu_pris_param": np.zeros(3)}, "niqe_pris_params.npz: .* needs mu_prisparam"),
        ({"mu_local": np.zeros(36), "cov_local": np.eye(36)}, "niqe-local, which is not NIQE"),
    ],
)
def test_niqe_without_its_authors_parameters_is_one_line(tmp_path, parameters, said):
    if parameters:
        np.savez(tmp_path / "niqe_pris_params.npz", **parameters)
    for folder in (tmp_path,) if parameters else (None, tmp_path):
        with one_line(MissingMetric, said):
            open_scorer(METRICS["niqe"], folder, None)


def test_with_a_reference(pyiqa, weights):
    a, b = batch(0), batch(1)
    expected = 2 * np.abs(a.astype(float) - b).mean(axis=(1, 2, 3)) / 255
    for name in ("dists", "topiq_fr"):
        scorer = open_scorer(METRICS[name], weights, None)
        np.testing.assert_allclose(scorer.score(a, b), expected, rtol=1e-6)
        assert list(scorer.identity["weights"]) == [f"{name}.mat"]


def test_two_files_of_one_metric(pyiqa, weights):
    scorer = open_scorer(METRICS["liqe"], weights, None)
    assert list(scorer.identity["weights"]) == ["ViT-B-32.pt", "liqe_koniq.pt"]
    (weights / "liqe_koniq.pt").unlink()
    with pytest.raises(MissingMetric, match="needs liqe_koniq.pt below --weights; it is at https"):
        open_scorer(METRICS["liqe"], weights, None)


def test_folders(pyiqa, weights, tmp_path):
    (tmp_path / "x").mkdir()
    write_png(tmp_path / "x" / "a.png", batch()[0])
    scorer = open_scorer(METRICS["fid"], weights, None)
    assert scorer.score(tmp_path / "x", tmp_path / "x") == [1.5]


@pytest.mark.parametrize("name", ["ilniqe", "afine_all_scale"])
def test_some_go_one_by_one(name, pyiqa, weights):
    scorer = open_scorer(METRICS[name], weights, None)
    others = batch(1) if METRICS[name].reference else None
    whole = scorer.score(batch(), others)
    alone = [(batch()[i : i + 1], None if others is None else others[i : i + 1]) for i in range(3)]
    assert whole == [scorer.score(*pair)[0] for pair in alone]
    assert (
        open_scorer(METRICS["musiq"], weights, None).score(batch(), None)[0] > 3
    )  # a batch is not


def test_every_way_of_fetching_is_served_from_the_folder(pyiqa, weights, capsys):
    before = urllib.request.urlopen, torch.hub.urlopen, torch.hub.get_dir()
    assert list(open_scorer(METRICS["clipiqa"], weights, None).identity["weights"]) == ["RN50.pt"]
    snapshot = (
        weights / "hub" / ("models--" + scorers.REPOSITORIES["maniqa-pipal"].replace("/", "--"))
    )
    (snapshot / "snapshots" / "abc").mkdir(parents=True)
    (snapshot / "refs").mkdir()
    (snapshot / "refs" / "main").write_text("abc")
    (snapshot / "snapshots" / "abc" / "model.safetensors").write_text("3.0")
    scorer = open_scorer(METRICS["maniqa-pipal"], weights, None)
    assert scorer.score(np.full((1, 8, 8, 3), 255, np.uint8), None) == pytest.approx([3])
    assert [name.split("/")[-1] for name in scorer.identity["weights"]] == ["model.safetensors"]
    for _ in range(2):  # the second time, too, it is asked for and its digest known
        assert open_scorer(METRICS["tres"], weights, None).identity["weights"]
    assert (urllib.request.urlopen, torch.hub.urlopen, torch.hub.get_dir()) == before
    assert not constants.HF_HUB_OFFLINE
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    "name, text",
    [
        ("dists", "needs dists.mat below --weights; it is at https://example.org/.*dists.mat"),
        ("clipiqa", "needs RN50.pt below --weights; it is at https://example.org/weights/RN50.pt"),
        ("maniqa-pipal", "hf download timm/vit_base_patch8_224.augreg2_in21k_ft_in1k --cache-dir"),
        ("lpips", "pyiqa fails: RuntimeError: operator torchvision::nms does not exist"),
        ("fgresq", "hf download openai/clip-vit-base-patch16 --cache-dir"),
        ("brisque", r"needs allmodel \(LIVE's\) or brisque_svm_weights.pth \(pyiqa's\) below"),
    ],
)
def test_missing_is_one_line(pyiqa, tmp_path, name, text):
    for folder in (None, tmp_path):
        with one_line(MissingMetric, text):
            open_scorer(METRICS[name], folder, None)


def test_what_pyiqa_lacks_is_refused_by_name(pyiqa, weights):
    (weights / "models--openai--clip-vit-base-patch16" / "snapshots" / "a").mkdir(parents=True)
    (next(weights.rglob("snapshots")) / "a" / "pytorch_model.bin").touch()
    with one_line(MissingMetric, "pyiqa 0.0.1 has no fgresq; take a later one"):
        open_scorer(METRICS["fgresq"], weights, None)


def test_ffhqs_statistics(pyiqa, weights):
    """Means and covariances of NumPy, as VQFR's file has them; a file that runs code is refused."""
    with one_line(MissingMetric, "needs inception_FFHQ_512.pth below --weights"):
        open_scorer(METRICS["fid-ffhq"], weights, None)
    path = weights / "inception_FFHQ_512.pth"
    torch.save({"mean": np.arange(3.0), "cov": np.eye(3)}, path)
    scorer = open_scorer(METRICS["fid-ffhq"], weights, None)
    assert list(scorer.identity["weights"]) == ["fid.mat", "inception_FFHQ_512.pth"]
    (mean, spread), used = scorers._ffhq(weights, {}), {}
    assert mean.tolist() == [0, 1, 2] and spread.tolist() == np.eye(3).tolist() and not used
    torch.save({"mean": Path("x"), "cov": np.eye(3)}, path)
    with one_line(MissingMetric, "no mean and cov of features"):
        open_scorer(METRICS["fid-ffhq"], weights, None)


def test_without_pyiqa(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyiqa", None)
    with pytest.raises(MissingMetric, match=r"pip install 'osdhuman-jax\[eval\]'"):
        open_scorer(METRICS["musiq"], None, None)
