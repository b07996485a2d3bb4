"""TAB in bash, zsh and fish: `slackwater completion SHELL` prints the script, which asks `offered` about a line.

click knows which parameter a line ends at. The scripts are ours: bash hands click's own a line that is cut at every "="
and ":", so that behind `mode=` nothing would be offered, and neither bash nor zsh would go on behind "key=" without a
space.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from click.shell_completion import ShellComplete

from pipeline.language import _, languages

if TYPE_CHECKING:
    from pipeline.cli.parsing import Verbs

SCRIPTS = {
    "bash": r"""# slackwater completion bash >> ~/.bashrc   (or: source <(slackwater completion bash))
_slackwater() {
    local line="${COMP_LINE:0:COMP_POINT}"
    local word="${line##*[[:space:]]}" prefix found
    COMPREPLY=()
    while IFS= read -r found; do
        COMPREPLY+=("${found%%$'\t'*}")
    done < <("${COMP_WORDS[0]}" completion query "$line" 2>/dev/null)
    # readline replaces only what stands behind the last of its word breaks
    if [[ $word == *[=:]* ]]; then
        prefix="${word%"${word##*[=:]}"}"
        COMPREPLY=("${COMPREPLY[@]#"$prefix"}")
    fi
    if [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *[=./] ]]; then compopt -o nospace; fi
}
complete -F _slackwater slackwater
""",
    "zsh": r"""#compdef slackwater
# slackwater completion zsh > "${fpath[1]}/_slackwater"   (or: source <(slackwater completion zsh))
_slackwater() {
    local line="${(j: :)${words[1,CURRENT-1]}} $PREFIX" found word
    local -a open shut open_shown shut_shown
    for found in ${(f)"$(${words[1]} completion query "$line" 2>/dev/null)"}; do
        word="${found%%$'\t'*}"
        if [[ $word == *[=./] ]]; then
            open+=("$word"); open_shown+=("${found//$'\t'/  }")
        else
            shut+=("$word"); shut_shown+=("${found//$'\t'/  }")
        fi
    done
    (( $#open )) && compadd -Q -S '' -l -d open_shown -- $open
    (( $#shut )) && compadd -Q -l -d shut_shown -- $shut
    return 0
}
if [ "$funcstack[1]" = "_slackwater" ]; then _slackwater "$@"; else compdef _slackwater slackwater; fi
""",
    "fish": r"""# slackwater completion fish > ~/.config/fish/completions/slackwater.fish
function __slackwater_candidates
    set -l words (commandline -opc)
    $words[1] completion query (commandline -cp | string collect) 2>/dev/null
end
complete -c slackwater -f -a '(__slackwater_candidates)'
""",
}


def offered(program: Verbs, line: str) -> list[tuple[str, str]]:
    """What may stand where the line ends: whole words, each with what it is (or "")."""
    words = line.split()
    word = words.pop() if words and not line[-1].isspace() else ""
    starts = [at for at, text in enumerate(words) if os.path.basename(text) == "slackwater"]
    words = words[starts[-1] + 1:] if starts else words[1:]
    words = [text for text in words if text != "help" and not text.startswith("lang=")]
    *before, word = program.meant([*words, word])
    complete = ShellComplete(program, {}, "", "").get_completions
    items = complete(before, word) + ([] if words == before else complete([], word))
    found = [(item.value, _(item.help) if item.help else "") for item in items]
    if before and word.startswith("l"):  # goes with every command
        found += [(f"lang={name}", "") for name in languages()]
    return list(dict.fromkeys(one for one in found if one[0].startswith(word)))
