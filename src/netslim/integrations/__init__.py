"""How netslim works within other people's trainers: one module a tool, imported when asked for.

`netslim.integrations.ultralytics` for YOLO and RT-DETR, `netslim.integrations.lightning`, and
`netslim.integrations.transformers`. Each needs the tool that it is named after.
"""
