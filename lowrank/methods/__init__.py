"""The parts. One file each; a method is a chain of them. `docs/add-a-method.md` shows how to write one."""
