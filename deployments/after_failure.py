"""What a failed inference leaves behind: tensors in its traceback, and maybe a broken GPU."""

from deployments.loading import one_line


def without_frames(error: Exception) -> Exception:
    """Takes from an error the frames that it came through, which hold the model's tensors.

    An error that goes to a request is referred to by it, and refers to it by its frames: only the
    garbage collector would free them, some time.
    """
    error.__traceback__ = error.__context__ = error.__cause__ = None
    return error


def probe_device() -> str | None:
    """Returns what is wrong with the GPU, None if it still computes.

    After an illegal access or a lost GPU every later CUDA call of the process fails, so one
    synchronisation after a failed inference tells, and only a new process helps.
    """
    import torch

    if not torch.cuda.is_available():
        return None
    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        return f"CUDA is broken in this process: {one_line(error)}"
    return None
