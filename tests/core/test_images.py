"""Images: what is refused, by which reason, and that the neutral image is fixed."""

import base64
import io

import pybase64
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo

from modint_guard.chat.images import (
    NEUTRAL_GREY,
    ImageLimits,
    as_rgb,
    check_data_url,
    decode,
    decode_data_url,
    neutral_image,
    png_data_url,
    size_of,
)
from modint_guard.errors import ImageError


def encoded(kind: str, size: tuple[int, int] = (31, 17), frames: int = 1) -> bytes:
    buffer = io.BytesIO()
    pictures = [Image.effect_noise(size, 90).convert("RGB") for _ in range(frames)]
    extra = {"save_all": True, "append_images": pictures[1:]} if frames > 1 else {}
    pictures[0].save(buffer, kind, **extra)
    return buffer.getvalue()


def url(data: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64," + base64.b64encode(data).decode()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_each_allowed_format_is_read_at_its_size(kind: str) -> None:
    assert check_data_url(url(encoded(kind), kind.lower())) == (31, 17)
    assert decode_data_url(url(encoded(kind))).size == (31, 17)


@pytest.mark.parametrize(
    "kind", ["application/octet-stream", "binary/octet-stream", "text/plain;charset=utf-8", ""]
)
def test_the_bytes_decide_and_not_the_media_type(kind: str) -> None:
    data = base64.b64encode(encoded("PNG")).decode()
    assert check_data_url(f"data:{kind};base64,{data}") == (31, 17)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize(
    ("orientation", "size"), [(1, (31, 17)), (3, (31, 17)), (6, (17, 31)), (8, (17, 31))]
)
def test_a_picture_is_read_upright_as_its_exif_data_say(
    kind: str, orientation: int, size: tuple[int, int]
) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    buffer = io.BytesIO()
    Image.new("RGB", (31, 17), "red").save(buffer, kind, exif=exif)
    address = url(buffer.getvalue())
    assert decode_data_url(address).size == size
    assert check_data_url(address) == check_data_url(address, whole=False) == size
    assert size_of(io.BytesIO(buffer.getvalue())) == size


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_data_leave_the_picture_as_it_is() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (31, 17), "red").save(buffer, "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff")
    assert decode_data_url(url(buffer.getvalue())).size == (31, 17)
    assert check_data_url(url(buffer.getvalue())) == (31, 17)


def test_only_the_first_frame_of_a_gif_is_read() -> None:
    assert decode_data_url(url(encoded("GIF", frames=3), "gif")).size == (31, 17)


@pytest.mark.parametrize("kind", ["PPM", "TGA", "ICO"])
def test_other_formats_are_refused(kind: str) -> None:
    with pytest.raises(ImageError, match="not a PNG, JPEG, WebP, GIF, BMP, TIFF or AVIF"):
        check_data_url(url(encoded(kind)))


@pytest.mark.parametrize(
    "address", ["http://a/b.png", "HTTPS://a/b.png", "file:///etc/passwd", "ftp://a", "//10.0.0.1/b.png"]
)
def test_an_image_by_address_is_refused_and_told_how_to_send_it(address: str) -> None:
    with pytest.raises(ImageError, match="send the image itself as a data: URL") as caught:
        check_data_url(address)
    assert (caught.value.code, caught.value.status) == ("remote_image_refused", 400)


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ("data:image/png,abc", "not base64"),
        ("data:image/png;base64", "not base64"),
        ("data:text/html;base64,YWJj", "not a PNG"),
        ("b.png", "no data: URL: put data:image/png;base64, before"),
        ("iVBORw0KGgo", "no data: URL: put data:image/png;base64, before"),
        ("/9j/4AAQSkZJRg", "no data: URL: put data:image/png;base64, before"),
        ("", "no data: URL"),
        ("data:image/png;base64,a*b=", "base64 text is damaged"),
        ("data:image/png;base64,aGVsbG8", "base64 text is damaged"),
        ("data:image/png;base64,aGVsbG8=", "not a PNG"),
        ("data:image/png;base64,", "not a PNG"),
    ],
)
def test_what_is_no_image_is_named(bad: str, said: str) -> None:
    with pytest.raises(ImageError, match=said):
        check_data_url(bad)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_truncated_image_is_an_error(kind: str, share: float) -> None:
    data = encoded(kind)
    with pytest.raises(ImageError, match=r"truncated|not a PNG"):
        check_data_url(url(data[: int(len(data) * share)]))


def test_pixels_are_refused_by_the_header_before_anything_is_decoded() -> None:
    header_only = encoded("PNG", (400, 300))[:60]
    with pytest.raises(ImageError, match="400 x 300 pixels, more than the limit of 1000") as caught:
        check_data_url(url(header_only), ImageLimits(max_pixels=1000))
    assert (caught.value.code, caught.value.status) == ("image_too_large", 413)


def test_a_bomb_is_an_error() -> None:
    bomb = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(bomb, "PNG")
    with pytest.raises(ImageError, match="too many pixels"):
        check_data_url(url(bomb.getvalue()))


def test_bytes_are_counted_before_decoding() -> None:
    with pytest.raises(ImageError, match="larger than 100 bytes"):
        check_data_url(url(b"x" * 101), ImageLimits(max_bytes=100))
    with pytest.raises(ImageError, match="not a PNG"):
        check_data_url(url(b"x" * 100), ImageLimits(max_bytes=100))


def test_without_decoding_only_the_header_is_checked() -> None:
    data = encoded("PNG", (40, 30))
    assert check_data_url(url(data[: len(data) // 2]), whole=False) == (40, 30)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_of_a_large_picture_the_beginning_says_the_size(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = Image.effect_noise((500, 400), 80).convert("RGB")
    buffer = io.BytesIO()
    noise.save(buffer, kind, **({"quality": 100} if kind in ("JPEG", "WEBP") else {}))
    address = url(buffer.getvalue())
    assert len(address) > 80_000
    decoded: list[int] = []
    decode_text = pybase64.b64decode

    def counted(text: str, *, validate: bool) -> bytes:
        decoded.append(len(text))
        return decode_text(text, validate=validate)

    monkeypatch.setattr(pybase64, "b64decode", counted)
    assert check_data_url(address, whole=False) == (500, 400)
    is_short = decoded == [1 << 16]
    assert is_short == (kind in ("PNG", "JPEG", "GIF", "BMP"))


def test_a_header_longer_than_the_beginning_is_read_all_the_same() -> None:
    buffer = io.BytesIO()
    Image.effect_noise((300, 200), 80).save(buffer, "JPEG", quality=100, icc_profile=b"x" * 60_000)
    assert check_data_url(url(buffer.getvalue()), whole=False) == (300, 200)


def test_a_large_picture_that_is_turned_is_upright_by_its_beginning_too() -> None:
    turned = Image.Exif()
    turned[ExifTags.Base.Orientation] = 6
    told = PngInfo()
    told.add_itxt("XML:com.adobe.xmp", '<x tiff:Orientation="6"/>')
    for kind, how in (("JPEG", {"exif": turned}), ("PNG", {"exif": turned}), ("PNG", {"pnginfo": told})):
        buffer = io.BytesIO()
        Image.effect_noise((500, 400), 80).save(buffer, kind, **how)
        assert check_data_url(url(buffer.getvalue()), whole=False) == (400, 500)


def test_bytes_are_counted_though_the_beginning_says_the_size() -> None:
    data = encoded("PNG", (40, 30)) + bytes(100_000)
    with pytest.raises(ImageError, match="larger than 100000 bytes"):
        check_data_url(url(data), ImageLimits(max_bytes=100_000), whole=False)


@given(st.integers(1, 60), st.integers(1, 60))
def test_the_neutral_image_is_plain_mean_grey_and_the_same_for_a_size(width: int, height: int) -> None:
    first = neutral_image((width, height))
    picture = decode_data_url(first).convert("RGB")
    assert picture.size == (width, height)
    assert picture.getcolors() == [(width * height, (NEUTRAL_GREY,) * 3)]
    neutral_image.cache_clear()
    assert neutral_image((width, height)) == first


def test_png_keeps_every_pixel() -> None:
    picture = Image.effect_noise((9, 9), 50).convert("RGB")
    assert decode_data_url(png_data_url(picture)).tobytes() == picture.tobytes()


def test_bytes_are_decoded_within_the_same_limits() -> None:
    data = encoded("PNG")
    assert decode(data).size == (31, 17)
    with pytest.raises(ImageError, match=f"larger than {len(data) - 1} bytes"):
        decode(data, ImageLimits(max_bytes=len(data) - 1))
    with pytest.raises(ImageError, match="truncated or damaged"):
        decode(data[:-40])


def test_what_is_transparent_is_white() -> None:
    picture = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    picture.putpixel((1, 0), (10, 20, 30, 255))
    assert list(as_rgb(picture).tobytes()) == [255, 255, 255, 10, 20, 30]
    assert as_rgb(Image.new("L", (1, 1), 7)).tobytes() == b"\x07\x07\x07"
