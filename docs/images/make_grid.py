"""Draws grid.png beside this file: pictures by the embedded model, each above its prompt."""

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
COLUMNS = 4
CELL_PX = 160
PICTURE_PX = 128
SEED = 0


def main() -> None:
    pipe = StableDiffusionPipeline.from_pretrained("emoji", tuning="off")
    grid = Image.new("RGB", (COLUMNS * CELL_PX, len(PROMPTS) // COLUMNS * CELL_PX), "white")
    draw = ImageDraw.Draw(grid)
    font = ImageFont.load_default(14)
    for index, prompt in enumerate(PROMPTS):
        row, column = divmod(index, COLUMNS)
        left, top = column * CELL_PX, row * CELL_PX
        picture = pipe(prompt, num_inference_steps=20, seed=SEED).images[0]
        grid.paste(picture.resize((PICTURE_PX, PICTURE_PX)), (left + (CELL_PX - PICTURE_PX) // 2, top + 8))
        draw.text((left + CELL_PX // 2, top + PICTURE_PX + 12), prompt, "#444444", font, anchor="ma")
    file = Path(__file__).with_name("grid.png")
    grid.save(file, optimize=True)
    print(file)


if __name__ == "__main__":
    main()
