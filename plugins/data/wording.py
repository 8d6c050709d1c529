"""The fixed wording of the model's prompt (source: boson-ai/higgs-audio,
``examples/generation.py``).

It stands alone, free of torch, so that the dataset preparation and the prompt builder write the
same text."""

INSTRUCTION = "Generate audio following instruction."

MULTI_SPEAKER_INSTRUCTION = (
    "You are an AI assistant designed to convert text into speech.\n"
    "If the user's message includes a [SPEAKER*] tag, do not read out the tag and generate speech"
    " for the following text, using the specified voice.\n"
    "If no speaker tag is present, select a suitable voice on your own."
)
