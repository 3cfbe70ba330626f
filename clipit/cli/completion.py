"""Print a script that completes commands and keys in a shell: `clipit completion bash|zsh|fish`."""

import argparse

from clipit.cli.commands import COMMANDS, command_names

_BASH = """\
_clipit() {{
    local word="${{COMP_WORDS[COMP_CWORD]}}"
    if [ "$COMP_CWORD" -eq 1 ]; then
        COMPREPLY=($(compgen -W "{commands}" -- "$word"))
    elif [[ "$word" == --* ]]; then
        compopt -o nospace
        COMPREPLY=($(compgen -W "{options}" -- "$word"))
    else
        compopt -o default
        COMPREPLY=()
    fi
}}
complete -F _clipit clipit"""
_SETUP = {
    "bash": 'add to ~/.bashrc: eval "$(clipit completion bash)"',
    "zsh": 'add to ~/.zshrc: eval "$(clipit completion zsh)"',
    "fish": "clipit completion fish > ~/.config/fish/completions/clipit.fish",
}


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shell", choices=tuple(_SETUP))
    print(completion_script(parser.parse_args().shell))


def completion_script(shell: str) -> str:
    """Compose the completion script for a shell; its first line says how to install it."""
    from clipit.config.load import all_keys

    keys = all_keys()
    lines = [f"# {_SETUP[shell]}"]
    if shell == "fish":
        lines += [
            f"complete -c clipit -f -n __fish_use_subcommand -a {name} -d '{summary}'"
            for commands in COMMANDS.values()
            for name, summary in commands.items()
        ]
        lines.append("complete -c clipit -l config -r -d 'YAML file, or the name of a shipped configuration'")
        lines += [f"complete -c clipit -l {key} -x" for key in keys]
        return "\n".join(lines)
    if shell == "zsh":
        lines.append("autoload -U +X bashcompinit && bashcompinit")
    options = " ".join(["--config", *(f"--{key}=" for key in keys)])
    lines.append(_BASH.format(commands=" ".join(command_names()), options=options))
    return "\n".join(lines)
