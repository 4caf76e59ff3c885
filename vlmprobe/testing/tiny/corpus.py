"""The sentences from which the tiny tokenizers learn their merges: English, Chinese, emoji, numbers."""

from __future__ import annotations

__all__ = ["ENGLISH", "MIXED"]

ENGLISH = (
    "What animal is this? It is a tiger in the tall grass, and it looks at the camera.",
    "Describe the picture. The picture shows a red seven on the left and a blue two on the right.",
    "Is there a cat in the image? Yes, there is a small cat on the chair. No, there is no dog.",
    "Which of the two images is brighter? The first image is brighter than the second image.",
    "How many people are there? There are three people, and one of them reads the newspaper.",
    "The answer to the question is not in the image. Please answer with yes or no.",
    "You are a helpful assistant. Read the text in the image and write it down.",
    "She sells sea shells by the sea shore; the shells that she sells are sea shells.",
    "The colour of the car is green, the colour of the sky is blue, the colour of the sun is yellow.",
)
MIXED = (
    *ENGLISH,
    "图片里有什么动物？图片里有一只老虎。",
    "请描述这张图片。这张图片的左边是红色，右边是蓝色。",
    "图中有两个人，一个人在看书。😀😀🎉",
)
