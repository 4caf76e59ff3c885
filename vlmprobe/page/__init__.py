"""The page of ``vlmprobe page``: a local web application that asks a model and shows what it was about to say."""
