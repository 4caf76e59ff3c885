"""The adapters that ship with vlmprobe: one module or package per family, found through entry points."""

if __name__ != "vlmprobe.model_registry":  # through the link at the top of the repository
    raise ImportError(
        f"This is vlmprobe's own package: import vlmprobe.model_registry, not {__name__}. The folder model_registry at "
        "the top of the repository is only a link to it; the import name model_registry belongs to another project."
    )
