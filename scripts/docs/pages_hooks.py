"""reference/hooks.md: every hook, what it registers, and how certframe itself uses it."""

from __future__ import annotations

import inspect
import textwrap

import md

from certframe import builtins, hookspecs
from certframe.registry import ENTRY_POINT_GROUP, REGISTERED

_INTRO = f"""# Hooks

A plugin is a module that implements any of these hooks and is announced by an entry point of the group
`{ENTRY_POINT_GROUP}`:

```toml
[project.entry-points.{ENTRY_POINT_GROUP}]
my-plugin = "my_plugin"
```

Each hook is called once, with one argument that must be called `register`:

{{register}}
Call it once for each implementation. The module of the target is imported only when the name is asked for, so the hook
module itself should import nothing heavy. What the class must look like is in [Write a plugin](../plugins/index.md).

The examples below are how certframe registers its own implementations: there is no other way in.
"""


def page() -> str:
    """The whole page."""
    parameters = list(inspect.signature(hookspecs.Register.__call__).parameters.values())[1:]
    words = ", ".join(p.name if p.default is p.empty else f'{p.name}="{p.default}"' for p in parameters)
    register = f"```text\nregister({words})\n```\n\n{md.docstring(hookspecs.Register.__call__.__doc__ or '')}"
    hooks = (_hook(kind, hook) for kind, hook in REGISTERED.items())
    return "".join([md.NOTICE, _INTRO.format(register=register), *hooks])


def _hook(kind: str, hook: str) -> str:
    spec = getattr(hookspecs, hook)
    example = textwrap.dedent(inspect.getsource(getattr(builtins, hook)))
    return (f"\n## `{hook}(register)`\n\n{md.docstring(spec.__doc__ or '')}\n"
            f"How to write {'an' if kind[0] in 'ae' else 'a'} {kind}: [{kind}](../plugins/{kind}.md). Options of the "
            f"built-in ones: [{kind}s]({'cli.md' if kind == 'command' else f'options.md#{kind}s'}).\n\n"
            f"```python\nfrom certframe import Register, hookimpl\n\n\n{example}```\n")
