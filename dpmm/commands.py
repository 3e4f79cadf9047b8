"""The commands, and what each stands for."""

from __future__ import annotations

from dataclasses import dataclass

MODEL = "model.pt"  # default of ckpt_path, in the current folder
OUTPUT = "output"  # default of output_dir, in the current folder


@dataclass(frozen=True)
class Argument:
    """An argument by its place, or an option that is no setting.

    Attributes:
        name: id of the config, or name of the option.
        description: help in one line.
        metavar: word for the value in the help.
        must_exist: whether it must be a file or a folder.
        optional: whether it may be left out.
    """

    name: str
    description: str
    metavar: str = "PATH"
    must_exist: bool = False
    optional: bool = False


@dataclass(frozen=True)
class Command:
    """A command.

    Attributes:
        name: its name.
        summary: help in one line.
        module: module that ``python -m`` runs.
        run_id: id of the config that is run; empty if the module is not ``monai.bundle run``.
        configs: configs whose ids are flags, each an overlay of those before.
        arguments: arguments by place.
        options: flags besides the settings.
        defaults: values of settings that are given if the user gives none.
        required: settings that must be files or folders.
    """

    name: str
    summary: str
    module: str = "monai.bundle"
    run_id: str = ""
    configs: tuple[str, ...] = ()
    arguments: tuple[Argument, ...] = ()
    options: tuple[Argument, ...] = ()
    defaults: tuple[tuple[str, str], ...] = ()
    required: tuple[str, ...] = ()


NORMALS = Argument("dataset_dir", "normal images: a file, or a folder of files or cases", "NORMALS", must_exist=True)
CASES = Argument("dataset_dir", "images: a file, or a folder of files or cases", "CASES", must_exist=True)
OUT = Argument("output_dir", "folder of the results", "OUT")
IN_MODEL, IN_OUTPUT = ("ckpt_path", MODEL), ("output_dir", OUTPUT)

COMMANDS = {
    command.name: command
    for command in (
        Command(
            "fit",
            "fit a model on normal images; writes model.pt",
            run_id="training",
            configs=("train",),
            arguments=(NORMALS,),
            defaults=(IN_MODEL, IN_OUTPUT),
            required=("validation_dir", "weights_path"),
        ),
        Command(
            "segment",
            "segment what is not normal: masks, maps, pictures and a report",
            run_id="inference",
            configs=("inference",),
            arguments=(CASES, OUT),
            defaults=(IN_MODEL,),
            required=("ckpt_path",),
        ),
        Command(
            "evaluate",
            "segment, and compare with labels",
            run_id="evaluation",
            configs=("inference", "evaluate"),
            arguments=(CASES, OUT),
            defaults=(IN_MODEL,),
            required=("ckpt_path", "label_dir"),
        ),
        Command(
            "calibrate",
            "set the thresholds of a model on other normal images, without a new fit",
            run_id="calibrate",
            configs=("train", "calibrate"),
            arguments=(NORMALS,),
            defaults=(IN_MODEL, IN_OUTPUT),
            required=("ckpt_path",),
        ),
        Command(
            "quantize",
            "add an encoder in int8 to a model, with the normal images of its fit",
            run_id="quantize",
            configs=("train", "quantize"),
            arguments=(NORMALS,),
            defaults=(IN_MODEL, IN_OUTPUT),
            required=("ckpt_path", "validation_dir"),
        ),
        Command(
            "export",
            "export a model as one file, TorchScript (.ts) or ONNX (.onnx)",
            configs=("inference",),
            arguments=(Argument("filepath", "the file to write: model.ts or model.onnx", "FILE"),),
            defaults=(IN_MODEL,),
            required=("ckpt_path",),
        ),
        Command(
            "serve",
            "serve a model to 3D Slicer and OHIF by MONAI Label",
            module="label",
            configs=("train", "inference"),
            arguments=(Argument("studies", "folder of images, or the address of a DICOMweb server", "STUDIES"),),
            options=(
                Argument("normals", "folder of normal images, for fits in MONAI Label", must_exist=True),
                Argument("bundles", "exported bundles to serve instead of a model, separated by commas"),
                Argument("modality", "modality of the series on a DICOMweb server (default MR)", "NAME"),
                Argument("port", "port of the server (default 8000)", "NUMBER"),
                Argument("host", "address to listen on (default 127.0.0.1)", "ADDRESS"),
            ),
            defaults=(IN_MODEL, ("output_dir", "label_output")),
            required=("ckpt_path",),
        ),
        Command(
            "info",
            "print what a model is: settings of its fit, licence, digest, components, calibration",
            module="scripts.describe_model",
            arguments=(Argument("ckpt_path", "the model", "MODEL", must_exist=True),),
        ),
        Command(
            "weights",
            "download the weights of DINOv2 ViT-S/14, which a fit needs once; write the sample model",
            module="scripts.download_weights",
        ),
    )
}
