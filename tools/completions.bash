# Completion of hako's commands for bash. Made by tools/make_completions.py.

# The value of option $2 of command $1: words, and kinds that are listed below. False: it takes none.
_hako_value() {
    case $1:$2 in
@VALUES@
    *) return 1 ;;
    esac
}

# The operands of command $1, and behind option $2.
_hako_operands() {
    case $1:$2 in
@INSTEAD@
    esac
}

_hako_first_operands() {
    case $1 in
@OPERANDS@
    *) return 1 ;;
    esac
}

_hako_options() {
    case $1 in
@OPTIONS@
    esac
}

_hako_operand() {
    case $1 in
@PLACEHOLDERS@
    *) words= kinds= ;;
    esac
}

# List the kind $1 of what begins with $2.
_hako_list() {
    local pid rest file
    case $1 in
    path) compgen -f -- "$2" ;;
    directory) compgen -d -- "$2" ;;
    user) compgen -u -- "$2" ;;
    group) compgen -g -- "$2" ;;
    variable) compgen -e -- "$2" ;;
    prog) compgen -c -- "$2" ;;
    policy)
        for file in /etc/hako/policies/"$2"*.toml ~/.config/hako/policies/"$2"*.toml; do
            [[ ! -e $file ]] || { file=${file##*/}; printf '%s\n' "${file%.toml}"; }
        done ;;
    pid)
        for file in /proc/[0-9]*/comm; do
            { read -r rest <"$file"; } 2>/dev/null || continue
            pid=${file#/proc/} pid=${pid%/comm}
            [[ $rest != hako-init || $pid != "$2"* ]] || printf '%s\n' "$pid"
        done ;;
    esac
}

# Complete $1 by the words $2 and the kinds $3, all behind $4.
_hako_reply() {
    local kind line
    while IFS= read -r line; do
        [[ -z $line ]] || COMPREPLY+=("$4$line")
    done < <(compgen -W "$2" -- "$1")
    for kind in $3; do
        [[ $kind != path && $kind != directory && ! ( $kind == prog && $1 == */* ) ]] || compopt -o filenames 2>/dev/null
        while IFS= read -r line; do
            COMPREPLY+=("$4$line")
        done < <(_hako_list "$kind" "$1")
    done
}

_hako() {
    local line=$COMP_LINE word typed=() starts=() i
    # bash breaks words at = and : too; those that no blank separates are one.
    for ((i = 0; i <= COMP_CWORD; i++)); do
        word=${COMP_WORDS[i]}
        if ((i == 0)) || [[ $line == [[:space:]]* || -z $word ]]; then
            typed+=("$word") starts+=("$i")
        else
            typed[-1]+=$word
        fi
        line=${line#"${line%%[![:space:]]*}"}
        line=${line#"$word"}
    done
    local last=$((${#typed[@]} - 1)) current=${typed[-1]} command=${typed[0]##*/}
    local options=1 operands words kinds value=
    COMPREPLY=()
    _hako_first_operands "$command" || return
    for ((i = 1; i < last; i++)); do
        word=${typed[i]}
        if [[ $word == -- ]]; then
            options=
        elif [[ $options && $word == -?* ]]; then
            _hako_operands "$command" "${word%%=*}"
            [[ $word != *=* && $word == -* ]] || continue
            [[ $word == --* ]] || word=-${word: -1}
            _hako_value "$command" "$word" || continue
            if ((i + 1 == last)); then value=$word; fi
            ((i++))
        elif [[ ${operands%% *} == PROG ]]; then
            if [[ $word != */* ]] && _hako_first_operands "$word"; then
                command=$word options=1
            elif declare -F _command_offset >/dev/null; then
                _command_offset "${starts[i]}"
                return
            else
                _hako_reply "$current" '' path ''
                return
            fi
        else
            options=
            [[ $operands == *' '* ]] && operands=${operands#* } || operands=
        fi
    done
    local before=
    if [[ $value ]]; then
        _hako_value "$command" "$value"
        _hako_reply "$current" "$words" "$kinds" ''
    elif [[ $options && $current == --*=* ]] && _hako_value "$command" "${current%%=*}"; then
        before=${current%%=*}=
        _hako_reply "${current#*=}" "$words" "$kinds" "$before"
    elif [[ $options && $current == -* ]]; then
        _hako_options "$command"
        _hako_reply "$current" "$words" '' ''
        [[ ${#COMPREPLY[@]} != 1 || ${COMPREPLY[0]} != *= ]] || compopt -o nospace 2>/dev/null
    elif [[ $operands ]]; then
        _hako_operand "${operands%% *}"
        _hako_reply "$current" "$words" "$kinds" ''
    fi
    # bash puts the reply in the place of what is behind the last = or :.
    word=${COMP_WORDS[COMP_CWORD]}
    [[ $word != [=:] ]] || word=
    before=${current%"$word"}
    COMPREPLY=("${COMPREPLY[@]#"$before"}")
}

complete -F _hako @NAMES@
