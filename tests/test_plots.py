from hfchat.plots import Scale


def test_a_scale_holds_its_values_between_round_ticks():
    scale = Scale.of([0.22, 0.48])
    assert scale.ticks == [0.3, 0.4]
    assert 0 < scale.at(0.22) < scale.at(0.3) < scale.at(0.48) < 100
    assert Scale.of([float("nan")]) is None
    assert Scale.of([5.0, 5.0]) is None
