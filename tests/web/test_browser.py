"""The whole of an export in headless Chromium, on its software adapter: pictures as Python's, and the page."""

# pyright: reportMissingImports=false

import io
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden.models import model_folder
from PIL import Image
from web.browser import error_of, new_page, run
from web.file_server import FileServer, serve

from shaderfusion.pipeline import StableDiffusionPipeline
from shaderfusion.web.export import export_web

# ------------------------------------------------------------------------------------------------ pictures


def pixels_of(page: Any, prompt: str, options: dict[str, Any]) -> np.ndarray:
    code = """
        const image = await pipeline.generate(argument.prompt, argument.options);
        return [image.width, image.height, [...image.data]];"""
    width, height, data = run(page, code, {"prompt": prompt, "options": options})
    levels = np.array(data, np.uint8).reshape(height, width, 4)
    assert (levels[..., 3] == 255).all()
    return levels[..., :3]


@pytest.mark.usefixtures("device")
def test_pictures_of_emoji(browser: Any) -> None:
    """Within 2/255 of Python's."""
    asked: list[tuple[str, dict[str, Any]]] = [
        ("a red heart", {"seed": 1}),
        ("a slice of pizza", {"seed": 2**40 + 3, "negativePrompt": "cheese", "guidanceScale": 4}),
    ]
    with tempfile.TemporaryDirectory() as folder, StableDiffusionPipeline.from_pretrained("emoji") as pipeline:
        export_web("emoji", Path(folder) / "emoji")
        with serve(Path(folder) / "emoji") as server, new_page(browser, server) as page:
            run(page, "globalThis.pipeline = await (await import('/pipeline.js')).Pipeline.load('/');")
            for prompt, options in asked:
                made = pixels_of(page, prompt, options | {"steps": 3})
                expected = pipeline(
                    prompt,
                    num_inference_steps=3,
                    seed=options["seed"],
                    negative_prompt=options.get("negativePrompt", ""),
                    guidance_scale=options.get("guidanceScale", 7.5),
                ).images[0]
                assert np.abs(made.astype(int) - np.asarray(expected)).max() <= 2, prompt


@pytest.mark.usefixtures("device")
def test_a_picture_is_pythons_whatever_came_before(loaded: Any) -> None:
    """PNDM, whose history and x_saved a picture must not take over from the one before; and without guidance."""
    with StableDiffusionPipeline.from_pretrained(model_folder("sd1")) as pipeline:
        for prompt, seed, scale in (("a fox", 3, 7.5), ("snow", 4, 7.5), ("a fox", 3, 7.5), ("a fox", 3, 0)):
            expected = np.asarray(pipeline(prompt, num_inference_steps=4, seed=seed, guidance_scale=scale).images[0])
            made = pixels_of(loaded, prompt, {"seed": seed, "steps": 4, "guidanceScale": scale})
            assert np.abs(made.astype(int) - expected).max() <= 2


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("scheduler", ["dpmpp_2m_karras", "euler_a"])
def test_pictures_of_a_batch(browser: Any, scheduler: str) -> None:
    """Of one generator, on sides that differ, by schedulers that are not the model's: one reads its history, one adds
    noise in its steps."""
    with (
        tempfile.TemporaryDirectory() as folder,
        StableDiffusionPipeline.from_pretrained(model_folder("sd1"), scheduler=scheduler) as pipeline,
    ):
        export_web(model_folder("sd1"), Path(folder) / "two", width=40, height=24, batch=2, scheduler=scheduler)
        with serve(Path(folder) / "two") as server, new_page(browser, server) as page:
            code = """
                const { Pipeline } = await import("/pipeline.js"), pipeline = await Pipeline.load("/");
                const images = await pipeline.generate("a fox", { seed: 5, steps: 3 });
                return images.map(({ data }) => [...data]);"""
            made = np.array(run(page, code)).reshape(2, 24, 40, 4)[..., :3]
        size: dict[str, Any] = {"width": 40, "height": 24, "num_images_per_prompt": 2}
        expected = pipeline("a fox", num_inference_steps=3, seed=5, **size).images
        assert np.abs(made - np.stack([np.asarray(image) for image in expected]).astype(int)).max() <= 2


def test_progress(loaded: Any) -> None:
    code = """
        const events = [];
        const onProgress = async (event) => events.push({
          ...event, latents: (await event.latents?.())?.length, preview: (await event.preview?.())?.width,
        });
        await pipeline.generate("one two three four five six seven eight nine ten", { steps: 2, onProgress });
        return events;"""
    events = run(loaded, code)
    assert [event["stage"] for event in events] == ["text", *["denoise"] * 3, "decode"]  # PNDM makes one call more
    assert events[0]["numDropped"] > 0
    assert [event["step"] for event in events[1:4]] == [1, 2, 3]
    assert all(event["numSteps"] == 3 and event["msPerStep"] > 0 for event in events[1:4])
    assert all(event["latents"] == 8 * 8 * 4 and event["preview"] == 32 for event in events[1:4])


def test_a_cancelled_picture_and_the_one_after(loaded: Any) -> None:
    before = pixels_of(loaded, "a fox", {"seed": 5, "steps": 3})
    code = """
        const controller = new AbortController();
        let steps = 0;
        const onProgress = ({ stage }) => { if (stage === "denoise" && ++steps === 2) controller.abort(); };
        try { await pipeline.generate("snow", { steps: 20, signal: controller.signal, onProgress }); }
        catch (error) { return [error.name, steps]; }"""
    assert run(loaded, code) == ["AbortError", 2]
    assert (pixels_of(loaded, "a fox", {"seed": 5, "steps": 3}) == before).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": "red"}, "InputError: seed (=red) must be a whole number"),
        ({"steps": 0}, "InputError: steps (=0) must be a whole number from 1 to 100"),
        ({"steps": 1.5}, "InputError: steps (=1.5) must be a whole number from 1 to 100"),
        ({"steps": 101}, "InputError: steps (=101) must be a whole number from 1 to 100"),
        ({"guidanceScale": "much"}, "InputError: guidanceScale (=much) must be a number"),
        ({"negativePrompt": 3}, "InputError: negativePrompt (=3) must be text"),
    ],
)
def test_arguments_that_are_wrong(loaded: Any, options: dict[str, Any], message: str) -> None:
    assert error_of(loaded, "await pipeline.generate('a fox', argument);", options).startswith(message)


def test_one_picture_at_a_time(loaded: Any) -> None:
    code = """
        const first = pipeline.generate("a fox", { steps: 1 });
        try { await pipeline.generate("snow"); } finally { await first; }"""
    assert error_of(loaded, code).startswith("InputError: a picture is being made")


def test_a_browser_that_drops_its_files_while_the_page_is_open(page: Any, server: FileServer) -> None:
    """As for another page's newer export. The address may come without its slash."""
    code = """
        const { Pipeline } = await import("/pipeline.js"), pipeline = await Pipeline.load(location.origin);
        for (const name of await caches.keys()) await caches.delete(name);
        return (await pipeline.generate("a fox", { steps: 1 })).width;"""
    assert run(page, code) == 32
    assert len(server.ranges_of("weights/00001.safetensors")) == 1


def test_ablation(loaded: Any) -> None:
    code = """
        const { measureAblation, toMarkdown } = await import("/ablation.js");
        const rows = await measureAblation(pipeline);
        return [rows, toMarkdown(rows, ["GPU: this one"])];"""
    rows, table = run(loaded, code)
    assert [row["name"] for row in rows][::4] == ["baseline", "+ Winograd"]
    assert len(rows) == 5
    assert all(row["ms"] > 0 for row in rows)
    assert table.startswith("- GPU: this one\n\n| ")
    assert table.count("\n| ") == 7


# ------------------------------------------------------------------------------------------------ the page


def test_the_page_and_a_second_visit_without_network(page: Any, server: FileServer) -> None:
    from playwright.sync_api import expect

    page.goto(server.url)
    expect(page.locator("#start")).to_contain_text("Download")
    assert not [path for path, _ in server.requests if path.startswith(("weights/", "programs/"))]
    page.click("#start")
    expect(page.locator("#status")).to_have_text("Ready")
    page.fill("#prompt", "a fox, “drawn”")
    page.fill("#seed", "6")
    page.fill("#steps", "3")
    page.click("#start")
    expect(page.locator("#status")).to_have_text("Done")
    assert "ms an iteration" in page.text_content("#facts")
    expect(page.locator("#notice")).to_be_hidden()
    first = saved_picture(page)
    assert first.info["parameters"].startswith(
        "a fox, “drawn”\nSteps: 3, Sampler: PLMS, CFG scale: 7.5, Seed: 6, Size: 32x32"
    )

    server.is_down = True
    page.reload()
    expect(page.locator("#status")).to_have_text("Ready")  # without a click, as all of it is there
    page.fill("#prompt", "a fox, “drawn”")
    page.fill("#seed", "6")
    page.fill("#steps", "3")
    page.click("#start")
    expect(page.locator("#status")).to_have_text("Done")
    assert (np.asarray(saved_picture(page)) == np.asarray(first)).all()
    page.fill("#steps", "100")
    page.click("#start")
    expect(page.locator("#time")).to_contain_text("of 101")
    page.click("#start")
    expect(page.locator("#status")).to_have_text("Cancelled")


def test_a_download_that_is_cancelled_and_begun_again_at_once(page: Any, server: FileServer) -> None:
    """While shaders compile: the buffers that are there are not those of the next try."""
    from playwright.sync_api import expect

    page.goto(server.url)
    expect(page.locator("#start")).to_contain_text("Download")
    page.evaluate("""() => new Promise((resolve) => {
        const status = document.getElementById("status"), start = document.getElementById("start");
        new MutationObserver(() => {
          if (status.textContent === "Compiling shaders" && !window.wasCancelled) {
            window.wasCancelled = true;
            start.click();
          } else if (status.textContent === "Cancelled") setTimeout(() => (start.click(), resolve()));
        }).observe(status, { childList: true });
        start.click();
      })""")
    expect(page.locator("#status")).to_have_text("Ready")
    page.fill("#steps", "1")
    page.click("#start")
    expect(page.locator("#status")).to_have_text("Done")


def saved_picture(page: Any) -> Image.Image:
    with page.expect_download() as download:
        page.click("#download")
    picture = Image.open(io.BytesIO(Path(download.value.path()).read_bytes()))
    picture.load()
    return picture


def test_the_page_says_why_it_cannot_run(page: Any, server: FileServer) -> None:
    from playwright.sync_api import expect

    page.add_init_script("navigator.gpu.requestAdapter = async () => null;")
    page.goto(server.url)
    expect(page.locator("#notice")).to_contain_text("The browser offers no GPU; update its driver")
    expect(page.locator("#start")).to_be_disabled()
