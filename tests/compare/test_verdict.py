import pytest

from onnxport.compare import verdict
from onnxport.compare.gates import parse_gate
from support.compare_samples import metrics, translated
from support.speed_samples import against_each_other

FP32 = translated()


def best(variants, reference, accepted=(), noise=0.01):
    return recommend(variants, reference, accepted, noise).name


def recommend(variants, reference, accepted=(), noise=0.01):
    return verdict.recommend(against_each_other(variants, noise), reference, [parse_gate(expr) for expr in accepted])


def verdicts(variants, reference, noun="inputs", accepted=(), noise=0.01):
    return verdict.verdicts(against_each_other(variants, noise), reference, noun, [parse_gate(expr) for expr in accepted])


def test_the_fastest_that_keeps_its_quality_is_chosen():
    variants = {"fp32": FP32, "int8": translated(0.1, speedup=2.1, size=7_800_000, agreement=0.96)}
    assert best(variants, "fp32") == "int8"
    assert verdicts(variants, "fp32")["int8"] == (
        "2.1 times as fast as fp32 (2.1 to 2.1), 0.26 of its size, BLEU 0.1 lower (37.2 against 37.3), 96% of the answers identical: "
        "the one to deploy here"
    )


def test_a_variant_that_loses_quality_is_not_chosen_however_fast():
    variants = {"fp32": FP32, "int8": translated(2.0, speedup=9.0, size=8_000_000, agreement=0.4)}
    assert best(variants, "fp32") == "fp32"
    told = verdicts(variants, "fp32")
    assert told["int8"].endswith("it loses too much to replace the reference")
    assert told["fp32"].startswith("the reference (BLEU 37.3): the one to deploy here")


def test_half_precision_on_a_cpu_saves_disk_not_time():
    variants = {"fp32": FP32, "fp16": translated(speedup=0.45, size=15_000_000)}
    assert best(variants, "fp32") == "fp32"
    assert verdicts(variants, "fp32")["fp16"] == (
        "0.45 times as fast as fp32 (0.45 to 0.45), 0.50 of its size, "
        "the same BLEU (37.3), all answers identical: on this CPU it saves disk, not time"
    )


@pytest.mark.parametrize("speedup", [0.97, 1.0, 1.03])
def test_as_fast_but_smaller_is_chosen(speedup):
    variants = {"fp32": FP32, "fp16": translated(speedup=speedup, size=15_000_000)}
    assert best(variants, "fp32") == "fp16"
    told = verdicts(variants, "fp32")["fp16"]
    assert told.startswith("about as fast as fp32 (")
    assert told.endswith("the one to deploy here, for its size")
    assert recommend(variants, "fp32").why == "size"


@pytest.mark.parametrize("speedup", [0.84, 0.94, 1.06])
def test_noise_does_not_change_what_is_chosen_for_its_size(speedup):
    variants = {"fp32": FP32, "fp16": translated(speedup=speedup, size=15_000_000)}
    assert recommend(variants, "fp32", noise=0.04) == verdict.Recommendation("fp16", "size")


@pytest.mark.parametrize("speedup", [0.86, 0.94, 1.0])
def test_a_noisy_speed_recommends_nothing(speedup):
    variants = {"fp32": FP32, "fp16": translated(speedup=speedup, size=15_000_000)}
    assert recommend(variants, "fp32", noise=0.4) == verdict.Recommendation("fp32", "plain", ("fp16",))
    told = verdicts(variants, "fp32", noise=0.4)
    assert "too noisy to tell whether it is faster than fp32" in told["fp16"]
    assert told["fp16"].endswith("too noisy to tell whether it gains enough; measure again on a quiet machine")
    assert "too noisy to tell whether fp16 gains enough" in told["fp32"]


def test_a_noisy_speed_that_cannot_change_the_choice_asks_for_no_other_measurement():
    variants = {"fp32": FP32, "fp16": translated(speedup=1.1, size=15_000_000), "int8": translated(speedup=2.4, size=7_800_000)}
    assert recommend(variants, "fp32", noise=0.15) == verdict.Recommendation("int8", "speed")
    told = verdicts(variants, "fp32", noise=0.15)
    assert "too noisy to tell whether it is faster than fp32" in told["fp16"]
    assert told["fp16"].endswith("a sound choice for its size, but int8 does better here")
    slower = variants | {"fp16": translated(speedup=0.9, size=29_000_000)}
    assert verdicts(slower, "fp32", noise=0.3)["fp16"].endswith(": int8 does better here")


def test_a_noisy_speed_that_is_faster_all_the_same_is_chosen():
    variants = {"fp32": FP32, "int8": translated(speedup=3.0, size=8_000_000)}
    assert recommend(variants, "fp32", noise=0.4) == verdict.Recommendation("int8", "speed")


def test_too_few_runs_recommend_nothing():
    variants = {"fp32": FP32, "int8": translated(speedup=3.0)}
    assert verdict.recommend(variants, "fp32").name == "fp32"
    assert verdict.verdicts(variants, "fp32")["int8"].startswith("too few runs to tell whether it is faster than fp32")


def test_of_two_fast_ones_that_cannot_be_told_apart_the_smaller_is_chosen():
    variants = {"fp32": FP32, "fp16": translated(speedup=2.05, size=15_000_000), "int8": translated(speedup=2.0, size=8_000_000)}
    assert recommend(variants, "fp32") == verdict.Recommendation("int8", "speed")


def test_what_is_accepted_takes_the_place_of_the_tolerances():
    lossy = translated(0.8, speedup=2.0, bleu_drop_ci=interval(0.3, 1.3))
    variants = {"fp32": FP32, "int8": lossy, "int4": translated(1.4, speedup=3.0)}
    assert best(variants, "fp32") == "fp32"
    assert best(variants, "fp32", ["bleu_drop<=1"]) == "int8"
    assert best(variants, "fp32", ["int4.bleu_drop<=1"]) == "fp32"  # of int8 nothing is said
    assert best(variants, "fp32", ["bleu_drop<=1", "agreement>=1.1"]) == "fp32"
    assert best(variants, "fp32", ["bleu_drop_ci.high<=1"]) == "fp32"
    assert best(variants, "fp32", ["speedup>=1"]) == "fp32"  # not about quality
    told = verdicts(variants, "fp32", accepted=["bleu_drop<=1"])
    assert told["int8"].endswith("the one to deploy here")
    assert told["int4"].endswith("its quality is not what is accepted: bleu_drop<=1 (1.4)")


def test_stricter_gates_are_followed_too():
    variants = {"fp32": FP32, "int8": translated(0.1, speedup=2.0)}
    assert best(variants, "fp32", ["bleu_drop<=0"]) == "fp32"
    assert "accepted: comet>=1" not in verdicts(variants, "fp32", accepted=["comet>=1"])["int8"]
    assert verdicts(variants, "fp32", accepted=["chrf_drop<=1"])["int8"].endswith("accepted: chrf_drop<=1 (not measured)")


def test_neither_faster_nor_smaller_is_no_gain():
    variants = {"fp32": FP32, "other": translated(speedup=1.03)}
    assert best(variants, "fp32") == "fp32"
    assert verdicts(variants, "fp32")["other"].endswith("no gain on this CPU")


def test_a_faster_one_that_is_not_the_best_points_to_the_best():
    variants = {"fp32": FP32, "int8": translated(speedup=2.0), "int4": translated(speedup=3.0)}
    assert verdicts(variants, "fp32")["int8"].endswith("a sound choice, but int4 does better here")


def test_pytorch_is_never_recommended():
    variants = {"pytorch": translated(), "fp32": translated(speedup=4.0), "int8": translated(3.0, speedup=8.0)}
    assert best(variants, "pytorch") == "fp32"
    told = verdicts(variants, "pytorch")
    assert told["pytorch"].endswith("the original model in PyTorch")
    assert told["fp32"].startswith("4.0 times as fast as PyTorch (4.0 to 4.0)")


@pytest.mark.parametrize("share, told", [(0.965, "96.5%"), (0.9999, ">99.9%"), (0.9696, "97%"), (0.0001, "<0.1%"), (0.29, "29%")])
def test_shares_are_rounded(share, told):
    assert f" {told} of the answers identical" in verdicts({"fp32": FP32, "int8": translated(agreement=share)}, "fp32")["int8"]


@pytest.mark.parametrize("same, chosen", [(0.95, "int8"), (0.5, "fp32")])
def test_without_references_agreement_decides(same, chosen):
    variants = {"fp32": metrics(), "int8": metrics(2.0, agreement=same)}
    assert best(variants, "fp32") == chosen


def test_nearly_all_is_never_called_all():
    told = verdicts({"fp32": FP32, "int8": translated(speedup=2.0, agreement=0.9999)}, "fp32")["int8"]
    assert ">99.9% of the answers identical" in told


def test_alone_nothing_is_recommended():
    assert "nothing can be recommended" in verdicts({"fp32": FP32}, "fp32")["fp32"]


def test_sizes_that_are_not_known_are_left_out():
    told = verdicts({"pytorch": translated(size_ratio=None), "fp32": translated(size_ratio=None, speedup=2.0)}, "pytorch")
    assert "its size" not in told["fp32"]


def unmeasured(**more):
    return metrics(speedup=3.0, size=8_000_000, agreement=None, **more)


@pytest.mark.parametrize("parity", [None, {}, {"within_bounds": None}, {"within_bounds": False, "relative_error": 0.5}])
def test_what_was_not_measured_is_never_recommended(parity):
    variants = {"fp32": metrics(agreement=None), "int8": unmeasured(parity=parity)}
    assert best(variants, "fp32") == "fp32"
    assert "the one to deploy" not in verdicts(variants, "fp32")["int8"]


def test_without_any_measure_the_verdict_says_that_nothing_is_known():
    told = verdicts({"fp32": metrics(), "int8": unmeasured()}, "fp32")["int8"]
    assert "quality and agreement not measured: nothing tells whether its answers are right, so it cannot be recommended" in told


def test_arrays_are_judged_by_the_bounds_of_the_golden_answers():
    parity = {"within_bounds": True, "relative_error": 0.012, "max_abs_diff": 3e-4}
    variants = {"fp32": metrics(agreement=None), "int8": unmeasured(parity=parity)}
    assert best(variants, "fp32") == "int8"
    told = (
        "golden answers within the bounds recorded at export (relative error 1.2e-02, largest difference 3.0e-04): the one to deploy here"
    )
    assert told in verdicts(variants, "fp32")["int8"]


def interval(low, high, n=200):
    return {"low": low, "high": high, "p": 0.05, "n": n}


@pytest.mark.parametrize(
    "drop, ends, told",
    [
        (0.5, (-0.1, 1.1), "BLEU 0.5 lower (36.8 against 37.3; within chance: -0.1 to 1.1 on 200 pairs)"),
        (0.4, (0.2, 0.6), "BLEU 0.4 lower (36.9 against 37.3; 95% interval 0.2 to 0.6 on 200 pairs)"),
        (-0.3, (-0.9, 0.2), "BLEU 0.3 higher (37.6 against 37.3; within chance: -0.2 to 0.9 on 200 pairs)"),
        (-0.3, (-0.6, -0.01), "BLEU 0.3 higher (37.6 against 37.3; 95% interval 0.0 to 0.6 on 200 pairs)"),
    ],
)
def test_a_verdict_knows_what_chance_explains(drop, ends, told):
    variants = {"fp32": FP32, "int8": translated(drop, speedup=2.0, bleu_drop_ci=interval(*ends))}
    assert told in verdicts(variants, "fp32", "pairs")["int8"]


def test_a_loss_that_may_be_chance_asks_for_more_data():
    variants = {"fp32": FP32, "int8": translated(2.0, speedup=2.0, bleu_drop_ci=interval(-0.5, 4.5, 20))}
    assert best(variants, "fp32") == "fp32"
    assert verdicts(variants, "fp32")["int8"].endswith("its loss may be chance but is too large to deploy on: measure on more data")


@pytest.mark.parametrize(
    "drop, ends, n, chosen",
    [
        (0.33, (-0.32, 0.95), 1997, "fp32"),  # within the tolerance by chance, perhaps
        (0.16, (0.0, 0.34), 1997, "other"),
        (0.16, (-0.6, 0.92), 200, "fp32"),  # the same loss on little data
        (0.0, (0.0, 0.0), 200, "other"),  # identical answers
        (0.1, (-0.2, 0.5), 200, "other"),
        (0.1, (-0.2, 0.51), 200, "fp32"),
        (-0.3, (-1.2, 0.6), 200, "fp32"),  # better, perhaps
        (-0.3, (-0.9, 0.3), 200, "other"),
        (0.6, (0.55, 0.65), 9000, "fp32"),
    ],
)
def test_the_interval_of_a_loss_must_be_within_the_tolerance(drop, ends, n, chosen):
    variants = {"fp32": FP32, "other": translated(drop, speedup=2.0, size=5_000_000, bleu_drop_ci=interval(*ends, n))}
    assert best(variants, "fp32") == chosen
    assert verdicts(variants, "fp32", "pairs")["other"].endswith("the one to deploy here") == (chosen == "other")


@pytest.mark.parametrize(
    "drop, ends, n, told",
    [
        (0.3, (-0.1, 0.7), 200, "its loss may be as large as 0.70 BLEU and more than 0.50 BLEU is too much; measure on about 800 pairs"),
        (0.33, (-0.32, 0.95), 1997, "may be as large as 0.95 BLEU and more than 0.50 BLEU is too much; measure on about 27,000 pairs"),
        (0.5, (-0.1, 1.1), 200, "measure on many more pairs to be sure"),
    ],
)
def test_a_loss_that_may_be_too_large_is_told_with_the_data_that_would_tell(drop, ends, n, told):
    variants = {"fp32": FP32, "int4": translated(drop, speedup=2.0, bleu_drop_ci=interval(*ends, n))}
    assert told in verdicts(variants, "fp32", "pairs")["int4"]
    # Where as much data as was asked for shows the same loss, the variant is recommended.
    if "about" in told:
        shrunk = (0.5 - drop) - 1e-6
        enough = translated(drop, speedup=2.0, bleu_drop_ci=interval(drop - shrunk, drop + shrunk, 27000))
        assert best({"fp32": FP32, "int4": enough}, "fp32") == "int4"


def test_shares_and_perplexity_have_intervals_too():
    fp32 = metrics(accuracy=0.911)
    for high, chosen in ((0.009, "int8"), (0.013, "fp32")):
        int8 = metrics(2.0, accuracy=0.910, accuracy_drop=0.001, accuracy_drop_ci=interval(-0.007, high, 300))
        assert best({"fp32": fp32, "int8": int8}, "fp32") == chosen
    told = verdicts({"fp32": fp32, "int8": int8}, "fp32", "texts")["int8"]
    assert "may be as large as 0.0130 and more than 0.0100 is too much; measure on about 540 texts to be sure" in told


def test_vectors_must_be_near():
    for cosine, chosen in ((0.97, "fp32"), (0.99, "int8")):
        variants = {"fp32": metrics(agreement=None, cosine=1.0), "int8": unmeasured(cosine=cosine, cosine_drop=1 - cosine)}
        assert best(variants, "fp32") == chosen
