"""The conformance suite of ``Quantizer``."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from ..calibration import texts
from ..errors import InputError, OptionError, ZooError
from ..interfaces import QuantizedModel
from .checks import check_progress, copied, same, shake
from .model import ModelSuite

if TYPE_CHECKING:
    import torch


class QuantizerSuite(ModelSuite):
    """Tests of quantizing a language model.

    Override ``network`` and ``tokenizer`` for another architecture.
    """

    interface = "Quantizer"
    scheme: ClassVar[str | None] = None
    """One of ``schemes`` that loses little; None: the first."""
    calibrated: ClassVar[bool] = True
    """Does the result depend on the calibration? False if ``scheme`` needs none."""

    @pytest.fixture
    def network(self) -> Any:
        """The original: here a Llama of transformers with two layers and random weights.

        In training mode, with dropout: a quantizer must work with it and not change it.
        """
        transformers = pytest.importorskip("transformers")
        import torch

        config = transformers.LlamaConfig(
            vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
            bos_token_id=1, eos_token_id=2, pad_token_id=0, attention_dropout=0.3,
        )  # fmt: skip

        def build() -> Any:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                return transformers.LlamaForCausalLM(config).train()

        return self.once("network", build)

    @pytest.fixture
    def tokenizer(self) -> Any:
        """The original's tokenizer: here one token for each common character."""
        transformers = pytest.importorskip("transformers")
        from tokenizers import Regex, Tokenizer, models, pre_tokenizers

        def build() -> Any:
            words = ["<pad>", "<s>", "</s>", "?", *"abcdefghijklmnopqrstuvwxyz ,.0123456789"]
            vocabulary = {word: number for number, word in enumerate(words)}
            made = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
            made.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
            return transformers.PreTrainedTokenizerFast(
                tokenizer_object=made, pad_token="<pad>", bos_token="<s>", eos_token="</s>",
                unk_token="?",
            )  # fmt: skip

        return self.once("tokenizer", build)

    @pytest.fixture
    def calibration(self) -> Any:
        """(N, T) token ids."""
        import torch

        return torch.randint(3, 64, (4, 16), generator=torch.Generator().manual_seed(1))

    def quantize(self, model: Any, *args: Any, **keywords: Any) -> Any:
        """Call ``quantize`` with the suite's scheme."""
        return model.quantize(*args, **{"scheme": self.scheme, **keywords})

    @pytest.fixture
    def ready(self, model: Any, network: Any, calibration: Any, tokenizer: Any) -> Any:
        """The quantized model."""
        return self.once(
            "ready", lambda: self.quantize(model, network, calibration, tokenizer=tokenizer)
        )

    @pytest.fixture
    def sample(self) -> Any:
        """(N, T) token ids that calibration has not seen."""
        import torch

        return torch.randint(3, 64, (2, 12), generator=torch.Generator().manual_seed(2))

    def outputs(self, ready: Any, sample: Any) -> Any:
        """The logits."""
        import torch

        with torch.no_grad():
            return _logits(ready(sample))

    def test_schemes(self, model: Any) -> None:
        """Schemes are a tuple of words that includes the suite's."""
        assert isinstance(model.schemes, tuple)
        assert all(isinstance(scheme, str) for scheme in model.schemes)
        assert len(set(model.schemes)) == len(model.schemes)
        assert model.schemes, "there is no default"
        assert self.scheme in (None, *model.schemes), f"set {type(self).__name__}.scheme"

    def test_the_first_scheme_is_the_default(
        self, model: Any, network: Any, calibration: Any, sample: Any
    ) -> None:
        """``scheme=None`` and no ``scheme`` mean the first of ``schemes``."""
        first = model.quantize(network, calibration, scheme=model.schemes[0])
        for made in (
            model.quantize(network, calibration),
            model.quantize(network, calibration, scheme=None),
        ):
            same(self.outputs(first, sample), self.outputs(made, sample), 1e-5)

    def test_every_scheme(self, model: Any, network: Any, calibration: Any, sample: Any) -> None:
        """Every scheme works, and the result is called like the original."""
        for scheme in model.schemes:
            made = self.quantize(model, network, calibration, scheme=scheme)
            assert self.outputs(made, sample).isfinite().all(), scheme

    def test_original_is_unchanged(self, model: Any, network: Any, calibration: Any) -> None:
        """Weights, training modes, gradients and hooks are not modified."""

        def facts() -> Any:
            return {
                name: (part.training, len(part._forward_hooks), len(part._forward_pre_hooks),
                       [p.requires_grad for p in part.parameters(recurse=False)])
                for name, part in network.named_modules()
            }  # fmt: skip

        weights, before = copied(dict(network.state_dict())), facts()
        self.quantize(model, network, calibration)
        same(weights, dict(network.state_dict()), 0)
        assert facts() == before

    def test_is_another_model(self, ready: Any, network: Any) -> None:
        """The result is a QuantizedModel in eval mode, without an interface; it shares no
        tensor."""
        assert isinstance(ready, QuantizedModel)
        assert ready.interface is None
        if ready.module is not None:
            assert not any(part.training for part in ready.module.modules()), "in training mode"
        mine = {t.data_ptr() for t in ready.state().values() if t.numel()}
        theirs = {t.data_ptr() for t in network.state_dict().values() if t.numel()}
        assert not mine & theirs, "a tensor is shared with the original: changing one changes both"

    def test_called_like_the_original(self, ready: Any, network: Any, sample: Any) -> None:
        """The result takes the same arguments and gives the same kind of output with similar
        numbers."""
        import torch

        original = copied(network).eval()
        with torch.no_grad():
            for arguments, keywords in (((sample,), {}), ((), {"input_ids": sample})):
                wanted = original(*arguments, **keywords)
                found = ready(*arguments, **keywords)
                assert type(found) is type(wanted)
                a, b = _logits(wanted).double(), _logits(found).double()
                assert a.shape == b.shape
                error = float((a - b).norm() / a.norm())
                assert error < 0.2, f"the logits are off by {error:.0%}"

    def test_is_quantized(self, ready: Any, network: Any, sample: Any) -> None:
        """The output differs from the original's: something was rounded."""
        import torch

        with torch.no_grad():
            assert not torch.equal(_logits(copied(network).eval()(sample)), _logits(ready(sample)))

    def test_generate(self, ready: Any, network: Any, sample: Any) -> None:
        """``generate`` takes the original's arguments and gives its shape."""
        if not hasattr(network, "generate"):
            pytest.skip("the original has no generate")
        keywords = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False}
        found = ready.generate(sample, **keywords)
        assert found.shape == copied(network).eval().generate(sample, **keywords).shape
        same(copied(sample), found[:, : sample.shape[1]])

    def test_report(self, ready: Any, network: Any, tmp_path: Path) -> None:
        """The report is JSON-like: bytes of the original's and the saved weights, and each
        layer."""
        from ..weights import load_tensors

        report = ready.report()
        json.dumps(report, allow_nan=False)
        assert isinstance(report["layers"], Mapping)
        assert report["layers"]
        before = _bytes(network.state_dict())
        assert report["bytes_before"] == pytest.approx(before, rel=0.05)
        folder = ready.save_pretrained(tmp_path / "saved")
        files = [load_tensors(file) for file in folder.rglob("*.safetensors")]
        after = sum(_bytes(tensors) for tensors in files)
        assert report["bytes_after"] == pytest.approx(after, rel=0.05), "not what is saved"
        assert after < before

    def test_source(self, ready: Any, calibration: Any, tmp_path: Path) -> None:
        """The source of the model is recorded, and saved with the tokenizer."""
        from .. import load

        ready.save_pretrained(tmp_path / "saved")
        again = load(tmp_path / "saved", device="cpu")
        for made in (ready, again):
            assert isinstance(made.source_model["id"], str)
            assert made.source_model["id"]
            assert {"revision", "license"} <= set(made.source_model)
            assert made.tokenizer is not None, "the tokenizer is lost"
            text = "the end."
            assert made.tokenizer(text)["input_ids"] == ready.tokenizer(text)["input_ids"]
        assert dict(again.source_model) == dict(ready.source_model)

    def test_folder(
        self, model: Any, ready: Any, network: Any, tokenizer: Any, calibration: Any, sample: Any,
        tmp_path: Path,
    ) -> None:  # fmt: skip
        """A folder gives the same as the module, and its tokenizer is used."""
        network.save_pretrained(tmp_path / "original")
        tokenizer.save_pretrained(tmp_path / "original")
        for folder in (tmp_path / "original", str(tmp_path / "original")):
            made = self.quantize(model, folder, calibration)
            same(self.outputs(ready, sample), self.outputs(made, sample), 1e-4)
            assert "original" in made.source_model["id"]
            assert made.tokenizer("the end")["input_ids"] == tokenizer("the end")["input_ids"]

    def test_calibration(
        self, model: Any, ready: Any, network: Any, tokenizer: Any, calibration: Any, sample: Any
    ) -> None:
        """Ids or texts are used, and by default zoo's own texts."""
        if not self.calibrated:
            return
        import torch

        def logits(given: Any, **keywords: Any) -> Any:
            made = self.quantize(model, network, given, **keywords)
            return self.outputs(made, sample)

        ids, others = self.outputs(ready, sample), logits(torch.full_like(calibration, 5))
        assert not torch.equal(ids, others), "other token ids change nothing"
        default = logits(None, tokenizer=tokenizer)
        same(logits(texts(), tokenizer=tokenizer), default)
        others = logits(["aaaa " * 40], tokenizer=tokenizer)
        assert not torch.equal(default, others), "other texts change nothing"
        for given in (None, texts()):
            with pytest.raises(InputError, match="tokenizer"):
                self.quantize(model, network, given)

    @pytest.mark.parametrize("wrong", [[], 3, "a text", [1, 2], [b"a"]], ids=repr)
    def test_wrong_calibration_is_refused(
        self, model: Any, network: Any, tokenizer: Any, wrong: Any
    ) -> None:
        """Anything but texts and token ids is refused."""
        if self.calibrated:
            with pytest.raises(InputError):
                self.quantize(model, network, wrong, tokenizer=tokenizer)

    def test_quantize_again(self, network: Any, tokenizer: Any, sample: Any) -> None:
        """The same model, calibration and seed give the same numbers."""

        def logits(state: int) -> Any:
            shake(state)
            made = self.quantize(self.load(), network, texts(), tokenizer=tokenizer, seed=5)
            return self.outputs(made, sample)

        same(logits(4), logits(9), 1e-4)

    @pytest.mark.parametrize("scheme", ["w0a8", "w8", "int8!", "", "a8w8"])
    def test_wrong_scheme_is_refused(self, model: Any, network: Any, scheme: str) -> None:
        """An unknown scheme is refused; the message names an existing one."""
        with pytest.raises(OptionError, match=re.escape(model.schemes[0])):
            model.quantize(network, scheme=scheme)

    @pytest.mark.parametrize("thing", [None, 3, "./no/such/folder"])
    def test_what_is_no_model_is_refused(self, model: Any, calibration: Any, thing: Any) -> None:
        """Anything but a model raises a ZooError."""
        with pytest.raises(ZooError):
            self.quantize(model, thing, calibration)

    def test_progress(self, model: Any, network: Any, calibration: Any) -> None:
        """Progress is reported."""
        check_progress(
            lambda progress: self.quantize(model, network, calibration, progress=progress)
        )


def _bytes(tensors: Mapping[str, torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def _logits(output: Any) -> torch.Tensor:
    found: torch.Tensor = (
        output if hasattr(output, "shape") else getattr(output, "logits", output[0])
    )
    return found.detach()
