"""The engine in a thread of its own, replaced when it fails; the device that frames live on."""
