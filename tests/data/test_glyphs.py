"""Glyphs: what is shipped as text, what is drawn from it, and how hard the episodes are."""

from __future__ import annotations

import importlib.util
from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lightning_meta.batches import SPLITS, Split
from lightning_meta.data.pool import Pool
from lightning_meta.errors import UserError
from lightning_meta.sources.glyph_outlines import charmap, read_outlines
from lightning_meta.sources.glyphs import FACES, Character, Glyphs, read_characters

COUNTS = {"train": 806, "val": 216, "test": 384, "twin": 88}
BASES = {"train": 134, "val": 37, "test": 57}


@pytest.fixture(scope="module")
def characters() -> list[Character]:
    return read_characters()


@pytest.fixture(scope="module")
def glyphs() -> Glyphs:
    source = Glyphs()
    source.pools()
    return source


@pytest.fixture(scope="module")
def plain(characters: list[Character]) -> Tensor:
    """Every listed character without jitter, `(C, 12, 28, 28)`."""
    return Glyphs(jitter=0.0).render(characters)[:, :, 0]


def few() -> list[Character]:
    return [c for c in read_characters() if chr(c.code) in "AÁaßЖωდԱ7€Ȼ"]


# The list


def test_counts_are_as_documented(characters: list[Character]) -> None:
    assert Counter(c.split for c in characters) == COUNTS
    assert {s: len({c.base for c in characters if c.split == s}) for s in SPLITS} == BASES


def test_every_character_is_listed_once_and_a_base_lies_in_one_split(characters: list[Character]) -> None:
    assert len({c.code for c in characters}) == len(characters)
    bases = [{c.base for c in characters if c.split == split} for split in SPLITS]
    assert all(not a & b for a, b in combinations(bases, 2))


@pytest.mark.parametrize("family", ["AaÀàĄǻ", "OØơỘο", "DĐɗ", "HΗНħ", "IlıíιІ", "nŉп", "ωΏᾧ", "шɯա"])
def test_relatives_share_a_base(characters: list[Character], family: str) -> None:
    assert len({c.base for c in characters if chr(c.code) in family}) == 1


@pytest.mark.parametrize("script", ["Latin", "Greek", "Cyrillic", "Armenian", "Georgian", "Digit", "Symbol"])
def test_every_script_is_in_every_split(characters: list[Character], script: str) -> None:
    counts = Counter(c.split for c in characters if c.script == script)
    total = sum(counts[split] for split in SPLITS)
    for split, share in zip(SPLITS, (0.60, 0.15, 0.25), strict=True):
        assert counts[split] / total == pytest.approx(share, abs=0.1)


@pytest.mark.parametrize("face", FACES)
def test_every_face_draws_every_character(characters: list[Character], face: str) -> None:
    """No character is drawn as a missing-glyph box, which `read_outlines` would refuse."""
    assert {c.code for c in characters} <= charmap(face)
    with pytest.raises(UserError, match=r"no glyph for U\+4E00"):
        read_outlines(face, [0x41, 0x4E00])


# The images


def test_no_two_splits_hold_the_same_picture(characters: list[Character], plain: Tensor) -> None:
    owner: dict[bytes, str] = {}
    for character, faces in zip(characters, plain, strict=True):
        if character.split in SPLITS:
            for picture in faces:
                assert owner.setdefault(picture.numpy().tobytes(), character.split) == character.split


def test_near_twins_never_span_splits(characters: list[Character], plain: Tensor) -> None:
    """Squared distance over ink, averaged over faces: above 0.07; a letter and its twin are below 0.01."""
    split = torch.tensor([("train", "val", "test", "twin").index(c.split) for c in characters])
    mean = torch.zeros(len(plain), len(plain))
    for face in range(len(FACES)):
        flat = plain[:, face].flatten(1).float() / 255
        ink = flat.square().sum(1)
        mean += (ink[:, None] + ink - 2 * flat @ flat.T) / torch.minimum(ink[:, None], ink) / len(FACES)
    listed = split < 3
    across = (split[:, None] != split) & listed[:, None] & listed
    assert mean[across].min() > 0.07
    assert mean[~listed][:, listed].min(1).values.max() < 0.01  # each twin stands for a listed character


def test_pools_have_the_promised_form(glyphs: Glyphs) -> None:
    names: list[str] = []
    for split, pool in glyphs.pools().items():
        assert pool.x.dtype == torch.uint8
        assert pool.input_shape == (1, 28, 28)
        assert pool.sizes.tolist() == [len(glyphs.face_names)] * COUNTS[split]
        names += pool.names
    assert len(set(names)) == len(names)
    assert "U+00E9 é" in names


def test_glyphs_are_inked_inside_the_image_and_never_clipped(glyphs: Glyphs) -> None:
    x = torch.cat([pool.x for pool in glyphs.pools().values()])[:, 0]
    border = torch.cat([x[:, 0], x[:, -1], x[:, :, 0], x[:, :, -1]], dim=1)
    assert border.max() <= 128  # the outer half of a border pixel is empty
    assert (border > 0).float().mean() < 0.01
    ink = x.float().mean(dim=(1, 2)) / 255
    assert ink.min() > 0.002
    assert 0.05 < ink.mean() < 0.15
    assert ink.max() < 0.4


def test_glyphs_are_upright(plain: Tensor, characters: list[Character]) -> None:
    """L is heavy at the left and at the bottom, T at the top; row 0 is the top of the image."""
    first = {chr(c.code): plain[i, FACES.index("DejaVuSans")].float() for i, c in enumerate(characters)}
    assert first["L"][:14].sum() < first["L"][14:].sum()
    assert first["L"][:, :14].sum() > first["L"][:, 14:].sum()
    assert first["T"][:14].sum() > first["T"][14:].sum()
    assert first["O"].sum() > 1.3 * first["o"].sum()


def test_faces_differ(plain: Tensor) -> None:
    """At most 5 % of the characters are drawn alike in some two faces (as measured: 3.3 %)."""
    pairs = combinations(range(len(FACES)), 2)
    alike = torch.stack([(plain[:, a] == plain[:, b]).all(dim=2).all(dim=1) for a, b in pairs])
    assert alike.any(dim=0).float().mean() < 0.05


# The jitter


def test_images_are_a_function_of_seed_character_face_and_copy() -> None:
    some = few()
    x = Glyphs(seed=3).render(some)
    assert torch.equal(x, Glyphs(seed=3).render(some))
    assert torch.equal(x.flip(0), Glyphs(seed=3).render(some[::-1]))
    assert torch.equal(x, Glyphs(seed=3, copies=2).render(some)[:, ::2])  # face by face, then by copy
    assert not torch.equal(x, Glyphs(seed=4).render(some))
    assert torch.equal(Glyphs(seed=3, jitter=0.0).render(some), Glyphs(seed=4, jitter=0.0).render(some))


@pytest.mark.parametrize("size", [16, 28, 84])
def test_any_image_size(size: int) -> None:
    x = Glyphs(image_size=size, jitter=2.0).render(few())
    assert x.shape == (len(few()), 12, 1, size, size)
    assert x.amax(dim=(2, 3, 4)).min() > 100


def test_fingerprint_is_of_the_images(monkeypatch: pytest.MonkeyPatch) -> None:
    some = few()
    monkeypatch.setattr("lightning_meta.sources.glyphs.read_characters", lambda: some)
    one = Glyphs().fingerprint()
    assert len(one) == 64
    assert Glyphs().fingerprint() == one
    assert Glyphs(seed=1).fingerprint() != one
    assert Glyphs(jitter=0.5).fingerprint() != one


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": -1}, "seed is -1, expected"),
        ({"jitter": 2.5}, "jitter is 2.5, expected"),
        ({"jitter": float("nan")}, "jitter is nan, expected"),
        ({"copies": 0}, "copies is 0, expected"),
        ({"image_size": 8}, "image_size is 8, expected"),
    ],
)
def test_bad_options_end_in_one_line(options: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        Glyphs(**options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


# Multi-task learning


@pytest.fixture(scope="module")
def held_out() -> dict[Split, Pool]:
    return Glyphs().held_out()


def test_every_script_holds_all_its_characters_in_every_split(
    held_out: dict[Split, Pool], characters: list[Character]
) -> None:
    scripts = Counter(c.script for c in characters)
    assert scripts == {
        "Latin": 847, "Greek": 306, "Cyrillic": 185, "Armenian": 78, "Georgian": 44, "Digit": 10, "Symbol": 24
    }  # fmt: skip
    for split, size in zip(SPLITS, (8, 2, 2), strict=True):
        pool = held_out[split]
        assert pool.names == tuple(c.label for c in characters)
        assert Counter(pool.groups) == scripts
        assert pool.sizes.unique().tolist() == [size]


@pytest.mark.parametrize("copies", [1, 3])
def test_splits_share_no_face_and_no_example_is_lost(copies: int, monkeypatch: pytest.MonkeyPatch) -> None:
    some = few()
    monkeypatch.setattr("lightning_meta.sources.glyphs.read_characters", lambda: some)
    source = Glyphs(copies=copies)
    everything = source.render(some).view(len(some), 12, copies, -1)
    faces: dict[str, set[int]] = {}
    for split, pool in source.held_out().items():
        x = pool.x.view(len(some), -1, 784)
        same = (x[:, :, None, None] == everything[:, None]).all(-1).all(0)  # (members, faces, copies)
        assert same.sum((1, 2)).tolist() == [1] * x.shape[1]
        faces[split] = set(same.any(2).nonzero()[:, 1].tolist())
        assert x.shape[1] == copies * len(faces[split])
    named = {split: {FACES[face] for face in of} for split, of in faces.items()}
    assert named["val"] == {"DejaVuSansMono", "DejaVuSansMono-Oblique"}
    assert named["test"] == {"DejaVuSerif", "DejaVuSerif-Italic"}
    assert named["train"] == set(FACES) - named["val"] - named["test"]


def test_a_held_out_face_is_no_twin_of_a_training_face(held_out: dict[Split, Pool], plain: Tensor) -> None:
    """Nearest raw picture in training: right for under a quarter of letters, so that there is something to learn."""
    train, test = (held_out[split].x.flatten(1).float() / 255 for split in ("train", "test"))
    place = {s: torch.arange(len(held_out[s].names)).repeat_interleave(held_out[s].sizes) for s in SPLITS}
    for script in ("Greek", "Cyrillic", "Armenian", "Georgian"):
        inside = torch.tensor([group == script for group in held_out["train"].groups])
        known, asked = inside[place["train"]], inside[place["test"]]
        nearest = torch.cdist(test[asked], train[known]).argmin(1)
        right = (place["train"][known][nearest] == place["test"][asked]).float().mean()
        assert 2 / inside.sum() < right <= 0.25
    upright = FACES.index("DejaVuSerif"), FACES.index("DejaVuSerif-Italic")
    others = [i for i in range(12) if i not in upright]
    alike = (plain[:, upright, None] == plain[:, None, others]).flatten(3).all(3).flatten(1).any(1)
    assert alike.sum() == 2  # as documented


# How hard it is


def nearest_neighbour_accuracy(pool: Pool, tasks: int, ways: int = 5, queries: int = 10) -> float:
    """1-shot accuracy of the nearest raw picture, each support picture shifted by up to 2 pixels each way."""
    generator = torch.Generator().manual_seed(0)
    x = pool.x.view(len(pool.names), -1, 28, 28).float() / 255
    correct = 0.0
    for _ in range(tasks):
        classes = torch.randperm(len(x), generator=generator)[:ways]
        drawn = [torch.randperm(x.shape[1], generator=generator)[: 1 + queries] for _ in range(ways)]
        episode = x[classes[:, None], torch.stack(drawn)]
        padded = torch.nn.functional.pad(episode[:, 0], (2, 2, 2, 2))
        shifted = torch.stack([padded[:, i : i + 28, j : j + 28] for i in range(5) for j in range(5)], dim=1)
        apart = torch.cdist(episode[:, 1:].flatten(0, 1).flatten(1), shifted.flatten(0, 1).flatten(1))
        guess = apart.view(-1, ways, 25).amin(2).argmin(1)
        correct += (guess == torch.arange(ways).repeat_interleave(queries)).float().mean().item()
    return correct / tasks


def test_raw_pixels_are_neither_enough_nor_useless(glyphs: Glyphs) -> None:
    """Nearest neighbour reaches 54 % at 5-way 1-shot, chance is 20 %."""
    assert 0.48 < nearest_neighbour_accuracy(glyphs.pools()["test"], tasks=200) < 0.60


def test_the_shipped_list_is_what_the_script_makes(capsys: pytest.CaptureFixture[str]) -> None:
    path = Path(__file__).parents[2] / "scripts" / "make_glyph_lists.py"
    spec = importlib.util.spec_from_file_location("make_glyph_lists", path)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert script.main(["--check"]) == 0, capsys.readouterr().out
