"""Small local sources for seven tasks of lmms-eval, in the schemas of their data sets, with answers of every form."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image, ImageFile

TEXT, NUMBER, PICTURE = datasets.Value("string"), datasets.Value("int64"), datasets.Image()
LIST = datasets.List(TEXT)
ODD = ("", "<think>no</think> Yes", "(B)", "b. because", "maybe", "The answer is C.", "yes.")


@pytest.fixture(scope="module", autouse=True)
def quiet_library() -> Iterator[None]:
    """Undoes what lmms-eval changes for the whole process, in each module that has this fixture."""
    from loguru import logger

    strict = ImageFile.LOAD_TRUNCATED_IMAGES  # lmms-eval makes Pillow accept pictures that are cut off
    logger.disable("")
    yield
    logger.enable("")
    ImageFile.LOAD_TRUNCATED_IMAGES = strict


def draw(number: int) -> Image.Image:
    """A picture that is different for each number."""
    return Image.new("RGB", (32, 40), (number * 20 % 256, number * 50 % 256, 90))


def write(rows: Sequence[dict[str, Any]], features: dict[str, Any], file: Path) -> None:
    """Write rows as a Parquet file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_list(list(rows), features=datasets.Features(features)).to_parquet(file)


def pope(folder: Path) -> list[str]:
    rows = [
        {"question_id": str(n), "question": f"Is there a cat {n}?", "answer": ("yes", "no")[n % 2]}
        | {"image_source": f"i{n // 2}", "image": draw(n // 2), "category": ("random", "popular")[n % 2]}
        for n in range(16)
    ]
    features = {"question_id": TEXT, "question": TEXT, "answer": TEXT, "image_source": TEXT, "image": PICTURE}
    write(rows, {**features, "category": TEXT}, folder / "data" / "test-00000-of-00001.parquet")
    return [row["answer"].capitalize() if n % 3 else "No" for n, row in enumerate(rows)]


def scienceqa_img(folder: Path) -> list[str]:
    rows = [
        {"image": draw(n), "question": f"Which one is {n}?", "choices": ["red", "blue", "green"], "answer": n % 3}
        | {"hint": "Look." if n % 2 else "", "subject": "natural science"}
        for n in range(12)
    ]
    features = {"image": PICTURE, "question": TEXT, "choices": LIST, "answer": datasets.Value("int8"), "hint": TEXT}
    write(rows, {**features, "subject": TEXT}, folder / "ScienceQA-IMG" / "test-00000-of-00001.parquet")
    return [("A", "b", "C. green", "B.")[n % 4] for n in range(12)]


def gqa(folder: Path) -> list[str]:
    images = [{"id": f"n{n}", "image": draw(n)} for n in range(4)]
    rows = [
        {"id": str(n), "imageId": f"n{n // 3}", "question": f"What is {n}?", "answer": ("dog", "left", "yes")[n % 3]}
        for n in range(12)
    ]
    write(images, {"id": TEXT, "image": PICTURE}, folder / "testdev_balanced_images" / "testdev-00000.parquet")
    features = {"id": TEXT, "imageId": TEXT, "question": TEXT, "answer": TEXT}
    write(rows, features, folder / "testdev_balanced_instructions" / "testdev-00000.parquet")
    return [(row["answer"].upper() + "!", "cat", row["answer"])[n % 3] for n, row in enumerate(rows)]


def textvqa_val(folder: Path) -> list[str]:
    rows = [
        {"image_id": f"i{n // 2}", "question_id": n, "question": f"what is the sign {n}?", "image": draw(n // 2)}
        | {"answers": ["stop"] * (n % 6) + ["the STOP sign"] * (10 - n % 6), "ocr_tokens": ["stop"]}
        for n in range(12)
    ]
    features = {"image_id": TEXT, "question_id": datasets.Value("int32"), "question": TEXT, "image": PICTURE}
    write(rows, {**features, "answers": LIST, "ocr_tokens": LIST}, folder / "data" / "validation-00000.parquet")
    return [("stop", "Stop sign", "two, stops", "a stop")[n % 4] for n in range(12)]


def mme(folder: Path) -> list[str]:
    kinds = ("existence", "count", "code_reasoning", "OCR")
    rows = [
        {"question_id": f"{kinds[n // 2 % 4]}/{n // 2}", "image": draw(n // 2), "category": kinds[n // 2 % 4]}
        | {"question": f"Is it {n}? Please answer yes or no.", "answer": ("Yes", "No")[n % 2]}
        for n in range(24)
    ]
    features = {"question_id": TEXT, "image": PICTURE, "question": TEXT, "answer": TEXT, "category": TEXT}
    write(rows, features, folder / "data" / "test-00000.parquet")
    return [("Yes", "No.", "y", "no, it is")[n % 4] for n in range(24)]


def mmstar(folder: Path) -> list[str]:
    parts = {"coarse perception": "image emotion", "math": "geometry", "science & technology": "biology"}
    rows = [
        {"index": n, "question": f"What is {n}? Options: A: a, B: b, C: c, D: d", "image": draw(n)}
        | {"answer": "ABCD"[n % 4], "category": list(parts)[n % 3], "l2_category": list(parts.values())[n % 3]}
        | {"meta_info": {"source": "here", "split": "val", "image_path": ""}}
        for n in range(15)
    ]
    features = {"index": NUMBER, "question": TEXT, "image": PICTURE, "answer": TEXT, "category": TEXT}
    meta = {"source": TEXT, "split": TEXT, "image_path": TEXT}
    write(rows, {**features, "l2_category": TEXT, "meta_info": meta}, folder / "val.parquet")
    return [("A", "(B)", "The answer is C.", "because of D")[n % 4 if n % 5 else 0] for n in range(15)]


def ai2d(folder: Path) -> list[str]:
    rows = [
        {"question": f"What is at {n}?", "options": ["leaf", "stem", "root"], "answer": str(n % 3), "image": draw(n)}
        for n in range(12)
    ]
    write(rows, {"question": TEXT, "options": LIST, "answer": TEXT, "image": PICTURE}, folder / "test.parquet")
    return [("A", "B. stem", " C.", "c!")[n % 4] for n in range(12)]


# By task: what writes its source into a folder and gives answers, of which some are right.
TASKS: dict[str, Callable[[Path], list[str]]] = {
    one.__name__: one for one in (pope, scienceqa_img, gqa, textvqa_val, mme, mmstar, ai2d)
}


def answers(task: str, folder: Path) -> list[str]:
    """Write the source of a task, and give an answer to each row: right ones, wrong ones, and odd ones."""
    said = TASKS[task](folder)
    return [ODD[n // 4 % len(ODD)] if n % 4 == 3 else one for n, one in enumerate(said)]


def evaluated(model: Any, name: str, file: Path, command: Any = None) -> dict[str, Any]:
    """The results of lmms-eval's own evaluator for a task over a Parquet file.

    Args:
        model: of lmms-eval.
        command: the arguments of its command, if the task reads them.
    """
    from lmms_eval import evaluator
    from lmms_eval.tasks import TaskManager

    from tdrs.benchmarks.lmms_definition import definition, task_files

    files = {definition(name).split: str(file)}
    data = {"dataset_path": "parquet", "dataset_name": None, "dataset_kwargs": {"data_files": files}}
    folder = file.parent / "tasks"
    folder.mkdir()
    (folder / "copy.yaml").write_text(json.dumps({"include": str(task_files()[name]), "task": "copy", **data}))
    manager = TaskManager("ERROR", str(folder), include_defaults=False, model_name="none")
    tasks = manager.load_task_or_group(["copy"], "simple" if model.is_simple else "chat")
    for task in tasks.values():  # as `simple_evaluate` does, which changes libraries for the whole process
        model.task_dict["copy"] = task.dataset
        task.set_config("num_fewshot", 0)
    found: dict[str, Any] = evaluator.evaluate(
        model, tasks, bootstrap_iters=0, process_docs_parallel=1, cli_args=command
    )
    return found
