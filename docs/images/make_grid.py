"""Draws grid.png and ways.png beside this file: pictures by the embedded model, each above what made it."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from shaderfusion import StableDiffusionPipeline

__all__: list[str] = []

PROMPTS = (
    "red heart",
    "pizza",
    "rocket",
    "dog",
    "yellow car",
    "green apple",
    "guitar",
    "snowman",
    "cat face",
    "rainbow",
    "house",
    "robot",
)
CELL_PX = 160
PICTURE_PX = 128
SEED = 0


def main() -> None:
    pipe = StableDiffusionPipeline.from_pretrained("emoji", tuning="off")
    save("grid.png", [(prompt, make(pipe, prompt)) for prompt in PROMPTS], columns=4)
    save("ways.png", make_ways(pipe), columns=5)


def make(pipe: StableDiffusionPipeline, prompt: str, **options: object) -> Image.Image:
    return pipe(prompt, num_inference_steps=20, seed=SEED, **options).images[0]


def make_ways(pipe: StableDiffusionPipeline) -> list[tuple[str, Image.Image]]:
    """What a picture may begin with, and what a prompt may say."""
    heart = make(pipe, "red heart")
    width, height = heart.size
    right_half = Image.new("L", heart.size)
    right_half.paste(255, (width // 2, 0, width, height))
    larger = {"width": 2 * width, "height": 2 * height}
    found = [
        ("red heart", heart),
        ("--strength 0.5", make(pipe, "blue heart", image=heart, strength=0.5)),
        ("--strength 0.8", make(pipe, "blue heart", image=heart, strength=0.8)),
        ("--mask", make(pipe, "green heart", image=heart, mask_image=right_half, strength=0.9)),
        ("--hires 2", make(pipe, "red heart", image=heart.resize(larger.values()), strength=0.4, **larger)),
    ]
    texts = (
        "[dog:cat face:0.4]",
        "[dog|cat face]",
        "(pizza:0.7) (rainbow:1.2)",
        "red heart :0.6 AND fire :0.5",
        "heart (fire:-1)",
    )
    return [*found, *((text, make(pipe, text, prompt_syntax="webui")) for text in texts)]


def save(name: str, pictures: Sequence[tuple[str, Image.Image]], columns: int) -> None:
    grid = Image.new("RGB", (columns * CELL_PX, len(pictures) // columns * CELL_PX), "white")
    draw = ImageDraw.Draw(grid)
    font = ImageFont.load_default(14 if columns == 4 else 12)
    for index, (label, picture) in enumerate(pictures):
        row, column = divmod(index, columns)
        left, top = column * CELL_PX, row * CELL_PX
        grid.paste(picture.resize((PICTURE_PX, PICTURE_PX)), (left + (CELL_PX - PICTURE_PX) // 2, top + 8))
        draw.text((left + CELL_PX // 2, top + PICTURE_PX + 12), label, "#444444", font, anchor="ma")
    file = Path(__file__).with_name(name)
    grid.save(file, optimize=True)
    print(file)


if __name__ == "__main__":
    main()
