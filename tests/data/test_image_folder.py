from __future__ import annotations

import hashlib
import re
from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_meta.batches import SPLITS
from lightning_meta.data import EpisodicDataModule
from lightning_meta.data.image_files import Listing
from lightning_meta.data.images import image_files, labelled_files, read_images
from lightning_meta.errors import UserError
from lightning_meta.sources.image_folder import ImageFolder


def save(path: Path, value: int = 0, size: tuple[int, int] = (12, 10), mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, value).convert(mode).save(path)
    return path


@pytest.fixture
def plain(cache: Path, tmp_path: Path) -> Path:
    """`root/<class>/*`: twenty classes of two images."""
    root = tmp_path / "plain"
    for c in range(20):
        for i in range(2):
            save(root / f"class{c:02}" / f"{i}.png", 10 * c + i)
    return root


@pytest.fixture
def divided(cache: Path, tmp_path: Path) -> Path:
    """`root/train|val|test/<class>/*`: classes a and b, c, d, with 1, 2, 3, 4 images."""
    root = tmp_path / "divided"
    for name, split, count in (("a", "train", 1), ("b", "train", 2), ("c", "val", 3), ("d", "test", 4)):
        for i in range(count):
            save(root / split / name / f"{i}.png", 50 * count + i)
    return root


def refused(source: ImageFolder) -> str:
    with pytest.raises(UserError) as error:
        source.prepare()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_folders_say_the_split(divided: Path) -> None:
    pools = ImageFolder(divided, image_size=8).pools()
    assert [pools[split].names for split in SPLITS] == [("a", "b"), ("c",), ("d",)]
    assert pools["train"].sizes.tolist() == [1, 2]
    assert pools["train"].input_shape == (3, 8, 8)
    assert pools["test"].x[:, 0, 0, 0].tolist() == [200, 201, 202, 203]  # in the order of the names


def test_fractions_divide_the_classes(plain: Path) -> None:
    pools = ImageFolder(plain).pools()
    names = [set(pools[split].names) for split in SPLITS]
    assert [len(n) for n in names] == [12, 3, 5]
    assert len(set.union(*names)) == 20
    assert {split: pools[split].names for split in SPLITS} == {
        split: pool.names for split, pool in ImageFolder(plain, image_size=8).pools().items()
    }
    assert names != [set(pool.names) for pool in ImageFolder(plain, seed=1).pools().values()]


def test_thirty_classes_are_enough_for_five_ways(cache: Path, tmp_path: Path) -> None:
    for c in range(30):
        (tmp_path / f"class_{c}").mkdir()
        Image.new("L", (4, 4), c).save(tmp_path / f"class_{c}" / "0.png")
    pools = ImageFolder(tmp_path, image_size=4, channels=1).pools()
    assert [pools[split].num_classes for split in ("train", "val", "test")] == [17, 5, 8]


def test_every_split_gets_a_class(cache: Path, tmp_path: Path) -> None:
    for count in (3, 4, 5):
        save(tmp_path / "few" / f"c{count}" / "0.png")
        save(tmp_path / "few" / f"d{count}" / "0.png")
        save(tmp_path / "few" / f"e{count}" / "0.png")
        for fractions in ((0.9, 0.05, 0.05), (0.02, 0.96, 0.02), (0.02, 0.02, 0.96)):
            pools = ImageFolder(tmp_path / "few", fractions=fractions).pools()
            assert min(pool.num_classes for pool in pools.values()) >= 1


def classes(folder: Path, count: int, images: int = 1) -> Path:
    for c in range(count):
        for i in range(images):
            save(folder / f"class_{c}" / f"{i}.png", 10 * c + i, (4, 4))
    return folder


def few_shot(folder: Path, **options: Any) -> list[int]:
    """The number of classes in each split."""
    of_source = {name: options.pop(name) for name in ("least_classes", "fractions") if name in options}
    source = ImageFolder(folder, image_size=4, channels=1, **of_source)
    EpisodicDataModule(source, val_tasks=1, test_tasks=1, **options).setup("fit")
    return [pool.num_classes for pool in source.pools().values()]


def refused_tasks(folder: Path, **options: Any) -> str:
    with pytest.raises(UserError) as error:
        few_shot(folder, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_eight_classes_of_five_images_are_enough_where_each_split_gets_two(cache: Path, tmp_path: Path) -> None:
    folder = classes(tmp_path / "photos", 8, 5)
    shape = {"ways": 2, "shots": 3, "queries": 2}
    assert few_shot(folder, **shape, least_classes=2) == [4, 2, 2]
    refusal = refused_tasks(folder, **shape)
    assert refusal.startswith("test_ways: 2 classes a task were asked for, but the val split has 1; ")
    assert "least_classes=2" in refusal
    assert "2 of 5 images in train, 2 of 5 images in val, 2 of 5 images in test" in refusal
    assert "there are 8 classes" in refusal


def test_a_folder_that_is_too_small_says_which_ways_it_is_enough_for(cache: Path, tmp_path: Path) -> None:
    folder = classes(tmp_path / "photos", 8, 5)
    few = {"shots": 1, "queries": 1}
    refusal = refused_tasks(folder, ways=4, test_ways=3, **few)
    assert "there are 8; or set least_classes of ImageFolder and the ways of tasks to 2" in refusal
    assert few_shot(folder, ways=2, test_ways=2, least_classes=2, **few) == [4, 2, 2]  # what it says works
    assert "least_classes=3" in (refusal := refused_tasks(folder, ways=2, least_classes=3, **few))
    assert "each for train, val and test are 9, but" in refusal
    assert "8 class folders; add some, or set least_classes and the ways of tasks to 2" in refusal
    refusal = refused_tasks(classes(tmp_path / "four", 4, 5), ways=2, **few)
    assert refusal.endswith("by more class folders: tasks need 2 of 2 images in train, 2 of 2 images in val, 2 of 2 "
                            "images in test, and there are 4")  # fmt: skip
    for split, count in (("train", 4), ("val", 1), ("test", 2)):
        for c in range(count):
            for i in range(2):
                save(tmp_path / "own" / split / f"{split}_{c}" / f"{i}.png")
    refusal = refused_tasks(tmp_path / "own", ways=2, **few)
    assert "own/train, val and test: tasks need 2 of 2 images" in refusal


@pytest.mark.parametrize(
    ("images", "said"), [(5, "ask for fewer, such as 3 + 2, or set small_classes='skip'"), (1, "ask for fewer or")]
)
def test_too_few_images_say_which_shots_and_queries_would_do(
    cache: Path, tmp_path: Path, images: int, said: str
) -> None:
    folder = classes(tmp_path / "photos", 8, images)
    refusal = refused_tasks(folder, ways=2, shots=3, queries=4, least_classes=2)
    assert "3 + 4 = 7 examples a class were asked for, but class 'class_" in refusal
    assert f"has {images}; {said}" in refusal
    if images == 5:
        assert few_shot(folder, ways=2, shots=3, queries=2, least_classes=2) == [4, 2, 2]


def test_a_least_number_of_classes_changes_no_division_that_has_it() -> None:
    """Runs that are resumed meet the classes that they were trained on."""
    for count, fractions in product(range(3, 40), ((0.6, 0.15, 0.25), (0.9, 0.05, 0.05), (0.34, 0.33, 0.33))):
        folders = [Path(f"class_{c}") for c in range(count)]
        before = ImageFolder("anywhere", fractions=fractions)._divide(folders)
        for least in range(1, count // 3 + 1):
            after = ImageFolder("anywhere", fractions=fractions, least_classes=least)._divide(folders)
            assert min(len(after[split]) for split in SPLITS) >= least
            assert sorted(name for split in SPLITS for name in after[split]) == sorted(f.name for f in folders)
            if min(len(before[split]) for split in SPLITS) >= least:
                assert after == before


def test_the_least_number_that_is_named_gives_every_split_enough(cache: Path, tmp_path: Path) -> None:
    folder, few = classes(tmp_path / "photos", 17, 2), {"shots": 1, "queries": 1}
    named = 0
    for fractions, ways, test_ways in product(((0.6, 0.15, 0.25), (0.25, 0.25, 0.5)), range(2, 9), range(2, 7)):
        options = {"fractions": fractions, "ways": ways, "test_ways": test_ways, **few}
        try:
            sizes = few_shot(folder, **options)
        except UserError as error:
            if found := re.search(r"with least_classes=(\d+) of ImageFolder", str(error)):
                named += 1
                sizes = few_shot(folder, **options, least_classes=int(found[1]))
            else:
                assert max(3 * test_ways, ways + 2 * test_ways) > 17 or fractions[0] < 0.5
                sizes = few_shot(folder, **options | {"ways": 5, "test_ways": 5}, least_classes=5)
                ways, test_ways = 5, 5
        assert sizes[0] >= ways
        assert min(sizes[1:]) >= test_ways
    assert named > 10


def test_divisions_stay_those_of_version_0_1() -> None:
    """The classes of a folder by hand: hashes of seed and name, the first for validation, the next for testing."""
    folders = [Path(f"class_{c}") for c in range(12)]
    found = ImageFolder("anywhere", seed=3)._divide(folders)
    drawn = sorted((hashlib.sha256(f"3/{f.name}".encode()).hexdigest(), f.name) for f in folders)
    names = [name for _, name in drawn]
    assert [sorted(found[split]) for split in ("val", "test", "train")] == [
        sorted(names[:2]), sorted(names[2:5]), sorted(names[5:])
    ]  # fmt: skip


def test_grey(divided: Path) -> None:
    assert ImageFolder(divided, channels=1).pools()["val"].input_shape == (1, 84, 84)


def test_foreign_files_are_passed_over(divided: Path) -> None:
    before = ImageFolder(divided).fingerprint()
    for name in (".hidden.png", "notes.txt", "inner/x.png"):
        (divided / "train/a" / name).parent.mkdir(exist_ok=True)
        (divided / "train/a" / name).touch()
    save(divided / "train/.git/x.png")
    assert ImageFolder(divided).fingerprint() == before


@pytest.mark.parametrize("suffix", [".jfif", ".JPE", ".mpo", ".pnm", ".apng", ".dib"])
def test_all_usual_suffixes_of_the_formats_are_read(suffix: str, divided: Path) -> None:
    save(divided / f"val/c/9{suffix}", 200)
    assert ImageFolder(divided, image_size=8).pools()["val"].x[-1].unique().tolist() == [200]


def test_avif_is_read_if_pillow_can(divided: Path) -> None:
    if ".avif" in Image.registered_extensions():
        save(divided / "val/c/9.avif", 200)
        assert ImageFolder(divided, image_size=8).pools()["val"].sizes.tolist() == [4]
    else:
        (divided / "val/c/9.avif").touch()
        assert ImageFolder(divided, image_size=8).pools()["val"].sizes.tolist() == [3]


def unread(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"no image that Pillow reads")


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    lines = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    caplog.clear()
    return lines


@pytest.mark.parametrize("held_out", [False, True])
def test_photographs_in_other_formats_are_counted_and_named_once(
    held_out: bool, cache: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = classes(tmp_path / "photos", 3, 3)
    unread(root, "class_0/a.HEIC", "class_0/b.heic", "class_2/c.CR2", "class_2/.hidden.heic", "class_2/notes.txt")
    source = ImageFolder(root, image_size=4)
    for _ in range(2):
        source.prepare_held_out() if held_out else source.prepare()
    said = "left out: 3 files have formats that are not supported (.cr2, .heic): "
    named = f"{root}/class_0/a.HEIC, {root}/class_0/b.heic, {root}/class_2/c.CR2; convert them to JPEG"
    assert warnings_of(caplog) == [said + named]
    unread(root, *(f"class_1/{i}.dng" for i in range(9)))
    files, _ = labelled_files(root)
    assert len(files) == 9
    (line,) = warnings_of(caplog)
    assert line.startswith("left out: 12 files have formats that are not supported (.cr2, .dng, .heic): ")
    assert line.endswith(f"{root}/class_1/2.dng and 7 more; convert them to JPEG")


def test_photographs_in_other_formats_below_a_folder_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path / "a.png")
    unread(tmp_path, "inner/b.heif")
    assert image_files([tmp_path]) == [tmp_path / "a.png"]
    said = f"1 file has a format that is not supported (.heif): {tmp_path}/inner/b.heif; convert it to JPEG"
    assert warnings_of(caplog) == [f"left out: {said}"]
    (tmp_path / "a.png").unlink()
    with pytest.raises(UserError, match=f"^{tmp_path}: found no images that can be read; {re.escape(said)}$"):
        image_files([tmp_path])
    for name in ("one", "two"):
        unread(tmp_path / "classes", f"{name}/b.heif")
    with pytest.raises(UserError, match=r"one: this class has no images that can be read; 1 file has .*b\.heif"):
        labelled_files(tmp_path / "classes")
    with pytest.raises(UserError, match=r"b\.heif: \.heif files are not supported; convert it to JPEG$"):
        read_images([tmp_path / "inner/b.heif"], (3, 4, 4))


@pytest.mark.parametrize("held_out", [False, True])
def test_a_folder_is_listed_once_to_prepare_it(held_out: bool, cache: Path, tmp_path: Path) -> None:
    class Counting(ImageFolder):
        listed = 0

        def _listing(self) -> Listing:
            self.listed += 1
            return super()._listing()

        def _held_out_listing(self) -> Listing:
            self.listed += 1
            return super()._held_out_listing()

    source = Counting(classes(tmp_path / "photos", 3, 3), image_size=4)
    source.prepare_held_out() if held_out else source.prepare()
    assert source.listed == 1


def test_a_folder_that_changes_is_decoded_anew(divided: Path) -> None:
    before = ImageFolder(divided).fingerprint()
    save(divided / "val/c/0.png", 77)
    after = ImageFolder(divided).fingerprint()
    save(divided / "val/c/new.png", 78)
    assert len({before, after, ImageFolder(divided).fingerprint()}) == 3


def test_a_folder_is_decoded_once(divided: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = ImageFolder(divided).fingerprint()
    monkeypatch.setattr(ImageFolder, "_decode", lambda self: pytest.fail("decoded twice"))
    assert ImageFolder(divided).fingerprint() == before


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA", "LA", "CMYK"])
def test_modes(divided: Path, mode: str) -> None:
    save(divided / "train/a/0.png", 255, mode="L").unlink()
    save(divided / "train/a/0.tif", 255, mode=mode)
    assert ImageFolder(divided).pools()["train"].x[0].unique().tolist() == [255]


def drawing() -> Image.Image:
    """A black square in the left half of a transparent image whose hidden colour is black, too."""
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[2:6, :4, 3] = 255
    return Image.fromarray(pixels)


def with_transparent_colour(path: Path) -> None:
    pixels = np.full((8, 8), 255, np.uint8)
    pixels[2:6, :4] = 0
    transparent = np.where(pixels, 7, 0).astype(np.uint8)  # 7 is the transparent grey, nearly black
    Image.fromarray(transparent).save(path, transparency=7)


TRANSPARENT = {
    "RGBA": lambda path: drawing().save(path),
    "LA": lambda path: drawing().convert("LA").save(path),
    "palette": lambda path: drawing().quantize(4).save(path),
    "a transparent grey": with_transparent_colour,
    "WebP": lambda path: drawing().save(path, "WEBP", lossless=True),
    "GIF": lambda path: drawing().save(path, "GIF"),
}


@pytest.mark.parametrize("kind", TRANSPARENT)
@pytest.mark.parametrize("channels", [1, 3])
def test_transparent_pixels_are_white(divided: Path, kind: str, channels: Literal[1, 3]) -> None:
    TRANSPARENT[kind](divided / "val/c/0.png")
    expected = torch.full((8, 8), 255)
    expected[2:6, :4] = 0
    images = ImageFolder(divided, image_size=8, channels=channels).pools()["val"].x[0]
    assert images.tolist() == expected.expand(channels, 8, 8).tolist()
    assert read_images([divided / "val/c/0.png"], (channels, 8, 8))[0].tolist() == images.tolist()


def test_half_transparent_pixels_are_mixed_with_white_and_opaque_ones_keep_their_colour(divided: Path) -> None:
    draw = np.random.default_rng(0).integers(0, 256, (8, 8, 4), np.uint8)
    draw[..., 3] = 255
    colours = draw[..., :3].tolist()
    Image.fromarray(draw).save(divided / "val/c/0.png")
    draw[0, 0] = 0, 0, 0, 128
    Image.fromarray(draw).save(divided / "val/c/1.png")
    opaque, mixed = ImageFolder(divided, image_size=8).pools()["val"].x[:2]
    assert opaque.permute(1, 2, 0).tolist() == colours
    assert mixed[:, 0, 0].tolist() == [127, 127, 127]
    assert mixed.flatten(1)[:, 1:].T.tolist() == draw[..., :3].reshape(-1, 3)[1:].tolist()


def test_upright_and_antialiased(divided: Path) -> None:
    pixels = np.zeros((40, 40), np.uint8)
    pixels[:20] = 255  # the upper half is white in the file, and the right half after a quarter turn
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(divided / "val/c/0.png", exif=exif)
    first = ImageFolder(divided, image_size=4, channels=1).pools()["val"].x[0, 0]
    assert torch.equal(first > 127, torch.tensor([[False, False, True, True]]).expand(4, 4))
    stripes = np.zeros((40, 40), np.uint8)
    stripes[::2] = 255
    Image.fromarray(stripes).save(divided / "val/c/0.png")
    first = ImageFolder(divided, image_size=4, channels=1).pools()["val"].x[0, 0]
    assert ((first > 100) & (first < 155)).all()  # grey, where the nearest pixel is black or white


def test_symbolic_links_are_followed(divided: Path, tmp_path: Path) -> None:
    outside = save(tmp_path / "outside.png", 123)
    (divided / "val/c/9.png").symlink_to(outside)
    assert ImageFolder(divided).pools()["val"].x[-1].unique().tolist() == [123]
    outside.unlink()
    assert refused(ImageFolder(divided)).startswith(f"{divided}/val/c/9.png: the file cannot be read")


def bomb(path: Path) -> None:
    Image.new("1", (14000, 14000)).save(path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.write_bytes(b""), "the file is empty"),
        (lambda path: path.write_bytes(b"no image"), "cannot be read as an image"),
        (lambda path: path.write_bytes(path.read_bytes()[:-30]), "cannot be read as an image"),
        (lambda path: Image.new("I;16", (9, 9)).save(path), "convert the image to 8 bits a channel"),
        (bomb, "the image is too large to be safe"),
    ],
)
def test_images_that_cannot_be_read(divided: Path, make: object, message: str) -> None:
    path = save(divided / "test/d/1.png", size=(300, 300))
    assert callable(make)
    make(path)
    line = refused(ImageFolder(divided))
    assert line.startswith(f"{path}: ")
    assert message in line


def test_of_several_images_that_cannot_be_read_five_are_named_and_all_counted(divided: Path) -> None:
    files = sorted(divided.rglob("*.png"))  # in all splits
    for count, end in (
        (2, "1 more file has such a fault: {1}"),
        (5, "4 more files have such faults: {1}, {2}, {3}, {4}"),
    ):
        for file in files[:count]:
            file.write_bytes(b"no image" if count == 2 else b"")
        line = refused(ImageFolder(divided))
        assert line.startswith(f"{files[0]}: the file ")
        assert line.endswith(f"; repair or remove it; {end.format(*files)}")
        with pytest.raises(UserError, match=f"{re.escape(line)}$"):
            read_images(divided, (1, 8, 8))
    for file in files:
        file.write_bytes(b"no image")
    assert refused(ImageFolder(divided)).endswith(
        f"; 9 more files have such faults: {', '.join(map(str, files[1:5]))} and 5 more"
    )


def test_folders_that_cannot_be_used(divided: Path, plain: Path, tmp_path: Path) -> None:
    assert "there is no such folder" in refused(ImageFolder(tmp_path / "nowhere"))
    (tmp_path / "bare").mkdir()
    assert "found 0 class folders" in refused(ImageFolder(tmp_path / "bare"))
    (plain / "class07/0.png").unlink()
    (plain / "class07/1.png").unlink()
    assert refused(ImageFolder(plain)).startswith(f"{plain}/class07: this class has no images")
    save(divided / "test/a/0.png")
    assert "class 'a' is in both train and test (1 such)" in refused(ImageFolder(divided))
    (divided / "val").rename(tmp_path / "away")
    assert refused(ImageFolder(divided)).startswith(f"{divided}/val: there are no class folders here")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fractions": (0.5, 0.5)}, "three positive numbers"),
        ({"fractions": (0.8, 0.3, -0.1)}, "three positive numbers"),
        ({"fractions": (0.6, 0.15, 0.2)}, "add up to 1"),
        ({"image_size": 0}, "image_size=0"),
        ({"channels": 2}, "channels=2"),
        ({"least_classes": 0}, "least_classes: at least 1 is needed"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ImageFolder("anywhere", **options)


def test_examples_of_every_class_are_divided_for_tasks(cache: Path, tmp_path: Path) -> None:
    for c, count in enumerate((3, 20, 40)):
        for i in range(count):
            save(tmp_path / f"one/group{c % 2}/class{c}/{i}.png", 60 * c + i, (4, 4))
    source = ImageFolder(tmp_path / "one", image_size=4, channels=1)
    pools = source.held_out()
    seen = []
    for split, sizes in zip(SPLITS, ([1, 24, 12], [1, 6, 3], [1, 10, 5]), strict=True):
        pool = pools[split]
        assert pool.names == ("group0/class0", "group0/class2", "group1/class1")
        assert pool.groups == ("group0", "group0", "group1")
        assert pool.sizes.tolist() == sizes
        values = pool.x[:, 0, 0, 0]
        assert (values // 60).tolist() == [0] * sizes[0] + [2] * sizes[1] + [1] * sizes[2]
        seen += values.tolist()
    assert len(set(seen)) == len(seen) == 63
    with pytest.raises(UserError, match="found 2 class folders"):  # it is the hash of pools, which there are none of
        source.fingerprint()
    other = ImageFolder(tmp_path / "one", image_size=4, channels=1, seed=1).held_out()
    assert not torch.equal(other["test"].x, pools["test"].x)
    (tmp_path / "one/group0/class0/0.png").unlink()
    with pytest.raises(UserError, match="class0: found 2 images; train, val and test need at least one each"):
        source.held_out()


def test_folders_say_which_image_is_in_which_split(cache: Path, tmp_path: Path) -> None:
    for s, split in enumerate(SPLITS):
        for name in "ab":
            save(tmp_path / split / name / "0.png", 10 * s + ord(name), (4, 4))
    (tmp_path / "train/a/thumbnails").mkdir()
    source = ImageFolder(tmp_path, image_size=4, channels=1)
    assert [source.held_out()[split].x[:, 0, 0, 0].tolist() for split in SPLITS] == [[97, 98], [107, 108], [117, 118]]
    assert source.held_out()["val"].names == ("a", "b")
    with pytest.raises(UserError, match="class 'a' is in both train and val"):
        source.pools()
    save(tmp_path / "test/c/0.png")
    with pytest.raises(UserError, match="train: there is no class 'c', which test has"):
        source.held_out()
    with pytest.raises(UserError, match="there is no such folder"):
        ImageFolder(tmp_path / "none").held_out()
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="found no class folders"):
        ImageFolder(tmp_path / "empty").held_out()
