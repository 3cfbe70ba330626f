"""Print a shell script that completes commands, options and keys: `clipit completion bash|zsh|fish`."""

import argparse
from collections.abc import Iterable

from clipit.cli.commands import COMMANDS, OWN_OPTIONS, READS_KEYS, SUBCOMMANDS, command_names
from clipit.errors import user_errors

_BASH = """\
_clipit() {{
    local word="${{COMP_WORDS[COMP_CWORD]}}" before="${{COMP_WORDS[COMP_CWORD-1]}}" command="${{COMP_WORDS[1]}}"
    local words=""
    if [ "$before" = "=" ]; then before="${{COMP_WORDS[COMP_CWORD-2]}}"; fi
    if [ "$word" = "=" ]; then word=""; fi
    case "$command" in {nested}) command="$command ${{COMP_WORDS[2]}}" ;; esac
    if [ "$COMP_CWORD" -eq 1 ]; then
        words="{commands}"
    elif [ "$before" = "--config" ]; then
        words="{configs}"
    elif [[ "$word" == -* ]]; then
        local keys="{keys}"
        case "$command" in
{options}
        esac
    elif [ "$COMP_CWORD" -eq 2 ]; then
        case "${{COMP_WORDS[1]}}" in
{second}
        esac
    fi
    COMPREPLY=($(compgen -W "$words" -- "$word"))
    if [ ${{#COMPREPLY[@]}} -eq 0 ]; then compopt -o default 2>/dev/null; fi
    if [[ "${{COMPREPLY[0]}}" == *= ]]; then compopt -o nospace 2>/dev/null; fi
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
    with user_errors():
        print(completion_script(parser.parse_args().shell))


def completion_script(shell: str) -> str:
    """Compose the completion script for a shell; its first line states how to install it."""
    lines = [f"# {_SETUP[shell]}"]
    if shell == "fish":
        return "\n".join([*lines, *_fish()])
    if shell == "zsh":
        lines.append("autoload -U +X bashcompinit && bashcompinit")
    options = {
        name: f"--help{'' if name not in READS_KEYS else ' --help-keys --config $keys'}" for name in _command_lines()
    }
    for name in options:
        own_options = [*OWN_OPTIONS.get(name, ()), *(f"--{key}=" for key in _section_keys(READS_KEYS.get(name, ())))]
        options[name] = " ".join([options[name], *own_options])
    script = _BASH.format(
        nested="|".join(SUBCOMMANDS),
        commands=" ".join(command_names()),
        configs=" ".join(_config_names()),
        keys=" ".join(f"--{key}=" for key in _run_keys()),
        options="\n".join(f'            "{name}") words="{text}" ;;' for name, text in options.items()),
        second="\n".join(
            f'            {name}) words="{" ".join(words)}" ;;' for name, words in _second_words().items()
        ),
    )
    return "\n".join([*lines, script])


def _fish() -> list[str]:
    lines = []
    for commands in COMMANDS.values():
        for name, summary in commands.items():
            quoted = summary.replace("'", "\\'")
            lines.append(f"complete -c clipit -f -n __fish_use_subcommand -a {name} -d '{quoted}'")
    for name, words in _second_words().items():
        lines.append(f"complete -c clipit -n '__fish_seen_subcommand_from {name}' -a '{' '.join(words)}'")
    for name, own_options in OWN_OPTIONS.items():
        lines += [f"complete -c clipit -n '{_seen(name)}' -l {option.removeprefix('--')}" for option in own_options]
    readers = _seen(*READS_KEYS)
    description = "YAML file, or the name of a shipped configuration"
    lines.append(f"complete -c clipit -n '{readers}' -l config -r -a '{' '.join(_config_names())}' -d '{description}'")
    lines.append(f"complete -c clipit -n '{readers}' -l help-keys -d 'list all configuration keys'")
    lines += [f"complete -c clipit -n '{readers}' -l {key} -r" for key in _run_keys()]
    for section in sorted({section for sections in READS_KEYS.values() for section in sections}):
        seen = _seen(*(name for name, sections in READS_KEYS.items() if section in sections))
        lines += [f"complete -c clipit -n '{seen}' -l {key} -r" for key in _section_keys([section])]
    return lines


def _seen(*names: str) -> str:
    """Compose fish's test for any of the commands, by their first words ("slides" for "slides tile")."""
    return f"__fish_seen_subcommand_from {' '.join(dict.fromkeys(name.split()[0] for name in names))}"


def _command_lines() -> list[str]:
    """List all commands; a command with subcommands is listed once per subcommand, such as "slides tile"."""
    return [f"{name} {second}".strip() for name in command_names() for second in SUBCOMMANDS.get(name, ("",))]


def _second_words() -> dict[str, Iterable[str]]:
    return {**SUBCOMMANDS, "init": _config_names(), "sweep": ["sweeps/lora_rank"], "completion": _SETUP}


def _config_names() -> list[str]:
    from clipit.config.shipped import shipped_names

    return [*shipped_names()]


def _run_keys() -> list[str]:
    from clipit.config.load import keys_of
    from clipit.config.run import RunConfig

    return keys_of(RunConfig)


def _section_keys(sections: Iterable[str]) -> list[str]:
    """List the dotted keys of these sections, which are not part of a run."""
    from clipit.config.load import all_keys

    return [key for key in all_keys() if key.partition(".")[0] in {*sections}]
