"""What is learned from the ledger: costs of levels, prompt classes, bands; and that it is saved without code."""

from __future__ import annotations

import json
import pickle
import zipfile

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from carbon import band_evidence
from carbon.energy_model import EnergyModel
from carbon.prompt_bands import SINGLE_BAND, fit_bands
from carbon.prompt_classes import UNKNOWN, PromptClassifier
from carbon.quality import shrunk_duels
from carbon.quality_book import Duel, QualityBook
from carbon.state import LearnedState, load_state
from carbon.text_features import FEATURES, MAX_CHARACTERS, featurise

SUMS = [f"What is {a} plus {b}? Compute the sum." for a in range(20) for b in range(10)]
POEMS = [f"Write a poem about {w} and the {n} sea" for w in ("rain", "love", "stone", "dusk") for n in range(50)]


def taught(**settings):
    classifier = PromptClassifier(["math", "poetry"], **settings)
    order = np.random.default_rng(0).permutation(400)
    texts, labels = SUMS + POEMS, ["math"] * 200 + ["poetry"] * 200
    classifier.learn([texts[i] for i in order], [labels[i] for i in order], passes=3)
    return classifier


class TestClassifier:
    def test_it_learns_and_is_calibrated_to_say_unknown(self):
        classifier = taught()
        assert classifier.predict("What is 77 plus 31? Compute the sum.").name == "math"
        assert classifier.predict("Write a poem about rain and the 7 sea").name == "poetry"
        strange = classifier.predict("zxqv wrrt plmk qqqa bbvn dfgh uiop mnbv")
        assert strange.name == UNKNOWN
        assert strange.best in ("math", "poetry")

    def test_a_sure_word_among_foreign_ones_is_still_foreign(self):
        classifier = taught(accuracy=0.5)
        foreign = " ".join(f"zx{i}qv" for i in range(40))
        found = classifier.predict(f"poem poem poem poem poem {foreign}")
        assert (found.best, found.name) == ("poetry", UNKNOWN)
        assert found.probability >= classifier.threshold

    def test_before_enough_examples_everything_is_unknown(self):
        classifier = PromptClassifier(["a", "b"])
        classifier.learn(["x y"] * 10, ["a"] * 10)
        assert classifier.predict("x y").name == UNKNOWN

    def test_noise_is_called_unknown_where_no_threshold_is_accurate(self):
        random = np.random.default_rng(1)
        classifier = PromptClassifier(["a", "b"], accuracy=0.95)
        texts = [" ".join(random.choice(["red", "blue", "green", "dog"], 6)) for _ in range(600)]
        classifier.learn(texts, random.choice(["a", "b"], 600).tolist())
        assert sum(p.name == UNKNOWN for p in classifier.predict_many(texts[:100])) > 80

    def test_saving_keeps_predictions_and_learning_goes_on(self, tmp_path):
        classifier = taught()
        classifier.save(tmp_path / "c.zip")
        loaded = PromptClassifier.load(tmp_path / "c.zip")
        for text in (*SUMS[:5], *POEMS[:5], "something else entirely"):
            ours, theirs = classifier.predict(text), loaded.predict(text)
            assert (ours.name, ours.best) == (theirs.name, theirs.best)
            assert ours.probability == pytest.approx(theirs.probability, abs=1e-3)
        loaded.learn(SUMS[:50], ["math"] * 50)
        assert loaded.examples == 450
        assert loaded.predict(POEMS[3]).name == "poetry"

    def test_nothing_in_a_file_is_executed(self, tmp_path):
        class Trap:
            def __reduce__(self):
                return (exec, ("raise SystemExit('executed')",))

        plain = tmp_path / "plain.zip"
        plain.write_bytes(pickle.dumps(Trap()))
        with pytest.raises(ValueError, match="not a prompt classifier"):
            PromptClassifier.load(plain)
        taught().save(tmp_path / "c.zip")
        with zipfile.ZipFile(tmp_path / "c.zip") as good, zipfile.ZipFile(tmp_path / "bad.zip", "w") as bad:
            for name in good.namelist():
                body = good.read(name)
                if name == "coef.npy":
                    np.save(tmp_path / "trap.npy", np.array([Trap()], dtype=object), allow_pickle=True)
                    body = (tmp_path / "trap.npy").read_bytes()
                bad.writestr(name, body)
        with pytest.raises(ValueError, match="not a prompt classifier"):
            PromptClassifier.load(tmp_path / "bad.zip")

    def test_labels_and_classes_are_checked(self):
        with pytest.raises(ValueError, match="none of the classes"):
            PromptClassifier(["a"]).learn(["x"], ["b"])
        with pytest.raises(ValueError, match="distinct"):
            PromptClassifier(["a", UNKNOWN])
        with pytest.raises(ValueError, match="nothing to save"):
            PromptClassifier(["a"]).save("x")


def test_features_are_bounded_and_hold_no_words():
    matrix = featurise(["word " * 100_000, "", "été 12 + 3 = ?"])
    assert matrix.shape == (3, FEATURES)
    assert np.isfinite(matrix.toarray()).all()
    assert (featurise(["a " * MAX_CHARACTERS]) != featurise(["a " * (2 * MAX_CHARACTERS)])).nnz == 0


class TestBands:
    def test_bands_order_prompts_by_how_much_brevity_hurts(self):
        random = np.random.default_rng(0)
        needs_length = random.random(600) < 0.5
        texts = [f"{'explain in depth why' if long else 'yes or no is'} topic {i % 17}" for i, long in
                 enumerate(needs_length)]  # fmt: skip
        prefers = np.where(random.random(600) < 0.9, needs_length, ~needs_length)
        model, band = fit_bands(featurise(texts), prefers, bands=2)
        assert model.bands == 2
        assert prefers[band == 1].mean() > 0.8 > 0.2 > prefers[band == 0].mean()
        assert model.band_of(["yes or no is topic 3", "explain in depth why topic 3"]).tolist() == [0, 1]

    def test_weights_are_those_of_a_fit_on_every_column(self):
        matrix, prefers = featurise(SUMS + POEMS), np.arange(400) >= 200
        model, _ = fit_bands(matrix, prefers, bands=2)
        whole = LogisticRegression(C=1.0, max_iter=500).fit(matrix, prefers)
        assert model.weights == pytest.approx(whole.coef_[0], abs=2e-3)
        assert np.abs(model.weights).max() > 1.0

    def test_too_few_prompts_make_one_band(self):
        matrix = featurise(["a", "b", "c"])
        assert fit_bands(matrix, np.array([True, False, True]))[0] is SINGLE_BAND
        many = featurise(["a"] * 200)
        assert fit_bands(many, np.ones(200, dtype=bool))[0].bands == 1


class TestEnergyModel:
    def model(self, load=1.0, count=300):
        random = np.random.default_rng(0)
        model = EnergyModel(3)
        for _ in range(count):
            level = int(random.integers(0, 2))
            prompt, output = int(random.integers(20, 400)), int(random.normal((400, 80)[level], 20))
            joules = load * (5.0 + 0.02 * prompt + 0.9 * output) * random.normal(1.0, 0.05)
            model.observe(
                "math", level, prompt_tokens=prompt, output_tokens=output, energy_j=joules, device_s=joules / 250
            )
        return model

    def test_it_recovers_lengths_and_joules_a_token(self):
        estimate = self.model().costs("math")
        assert estimate is not None
        expected = [5 + 0.02 * 210 + 0.9 * output for output in (400, 80)]
        assert estimate.costs.energy_j[:2] == pytest.approx(expected, rel=0.1)
        assert estimate.costs.time_s[0] == pytest.approx(expected[0] / 250, rel=0.1)
        assert estimate.method == ("measured", "measured", "estimated")

    def test_a_level_not_yet_tried_is_estimated_from_the_usual_ratio(self):
        estimate = self.model().costs("math")
        assert estimate is not None
        assert estimate.costs.energy_j[2] < estimate.costs.energy_j[1] * 1.2
        assert self.model().costs("unseen") is None
        assert EnergyModel(3).costs("math") is None

    def test_it_follows_the_load(self):
        model = self.model()
        before = model.costs("math")
        random = np.random.default_rng(1)
        for _ in range(6000):
            output = int(random.normal(400, 20))
            model.observe("math", 0, prompt_tokens=200, output_tokens=output, energy_j=0.3 * output, device_s=0.1)
        after = model.costs("math")
        assert before is not None
        assert after is not None
        assert after.costs.energy_j[0] < 0.5 * before.costs.energy_j[0]

    def test_state_survives_and_is_checked(self):
        model = self.model()
        again = EnergyModel.from_state(json.loads(json.dumps(model.state())))
        assert again.costs("math") == model.costs("math")
        with pytest.raises(ValueError, match="not an energy model"):
            EnergyModel.from_state({"levels": 3})
        with pytest.raises(ValueError, match="at least 0"):
            model.observe("m", 0, prompt_tokens=1, output_tokens=1, energy_j=-1.0, device_s=0.0)
        with pytest.raises(ValueError, match="outside"):
            model.observe("m", 7, prompt_tokens=1, output_tokens=1, energy_j=1.0, device_s=0.0)


def test_everything_learned_is_saved_and_damage_is_named(tmp_path):
    book = QualityBook(3)
    book.record([Duel("math", 1, 1), Duel("math", 2, -1), Duel("math", 1, 0)])
    matrix = featurise([f"explain {i}" if i % 2 else f"yes {i}" for i in range(200)])
    bands, _ = fit_bands(matrix, np.arange(200) % 2 == 1, bands=2)
    state = LearnedState(TestEnergyModel().model(), book, taught(), {"math": bands})
    state.save(tmp_path)
    loaded = load_state(tmp_path, 3)
    assert loaded.quality.duels("math") == 1.0
    assert loaded.energy_model.costs("math") == state.energy_model.costs("math")
    assert loaded.bands["math"].band_of(["explain 3"]).tolist() == bands.band_of(["explain 3"]).tolist()
    assert loaded.classifier is not None
    with pytest.raises(ValueError, match="3 directive levels"):
        load_state(tmp_path, 4)
    for name in ("quality.json", "bands.npz"):
        (tmp_path / name).write_text("{broken")
        with pytest.raises(ValueError, match=name):
            load_state(tmp_path, 3)
        (tmp_path / name).unlink()
    assert load_state(tmp_path / "nothing", 3).quality.keys == ()


def test_the_quality_book_forgets_and_checks():
    book = QualityBook(2)
    book.record([Duel("a", 1, 1)] * 10)
    book.fade(0.5)
    assert book.duels("a") == 5.0
    assert book.estimate("a").mean[1] > 0.5
    assert book.duels("unseen") == 0.0
    with pytest.raises(ValueError, match="level"):
        book.record([Duel("a", 2, 1)])
    with pytest.raises(ValueError, match="outcome"):
        Duel("a", 1, 2)
    with pytest.raises(ValueError, match="quality book"):
        QualityBook.from_state({"levels": 2, "duels": {"a": [[-1, 0, 0]]}})


def test_judged_prompts_are_bounded_survive_and_damage_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(band_evidence, "MAX_PROMPTS_A_CLASS", 100)
    evidence = band_evidence.BandEvidence(3)
    prompts = [
        band_evidence.JudgedPrompt("c", f"{'why' if i % 2 else 'name'} thing {i}", {1: -1 if i % 2 else 1})
        for i in range(130)
    ]
    evidence.add(prompts)
    assert len(evidence) == 100
    path = tmp_path / "judged.npz"
    evidence.save(path)
    again = band_evidence.BandEvidence.load(path)
    models, counts = again.fit(bands=2)
    assert models["c"].bands == 2
    # level 2 was never judged
    assert np.sum(counts["c"], axis=0)[1].tolist() == [0.0, 0.0, 0.0]
    assert np.sum(counts["c"]) == 100
    assert evidence.fit(bands=2)[1]["c"][0].tolist() == counts["c"][0].tolist()
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match=r"judged\.npz holds no judged prompts"):
        band_evidence.BandEvidence.load(path)


def test_bands_that_differ_by_chance_are_drawn_together_in_duels_too():
    same = shrunk_duels(np.array([[[30.0, 0.0, 30.0]], [[33.0, 0.0, 27.0]], [[27.0, 0.0, 33.0]]]))
    assert [float(estimate.mean[1]) for estimate in same] == pytest.approx([0.5, 0.51, 0.49], abs=0.01)
    apart = shrunk_duels(np.array([[[60.0, 0.0, 0.0]], [[0.0, 0.0, 60.0]]]))
    assert apart[0].mean[1] > 0.9
    assert apart[1].mean[1] < 0.1
    assert [estimate.observations for estimate in apart] == [60.0, 60.0]
