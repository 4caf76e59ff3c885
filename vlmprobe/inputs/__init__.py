"""What is asked about: messages, images and chat templates, read and checked before anything runs."""
