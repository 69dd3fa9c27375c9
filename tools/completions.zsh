#compdef @NAMES@
# Completion of hako's commands for zsh. Made by tools/make_completions.py.

# Complete one of the words in $1, or what the kinds in the rest list.
_hako_any() {
  local kind
  local -a found
  found=(${=1})
  (( $#found )) && compadd -a found
  shift
  for kind; do
    case $kind in
    path) _files ;;
    directory) _path_files -/ ;;
    user) _users ;;
    group) _groups ;;
    variable) _parameters -g '*export*' ;;
    policy) found=({/etc/hako/policies,~/.config/hako/policies}/*.toml(N:t:r)); (( $#found )) && compadd -a found ;;
    pid) _hako_pids ;;
    prog) _command_names -e ;;
    esac
  done
}

_hako_pids() {
  local file
  local -a found
  for file in /proc/<->/comm(N); do
    [[ "$(<$file)" == hako-init ]] 2>/dev/null && found+=(${file:h:t})
  done
  (( $#found )) && compadd -a found
}

# PROG and ARG: an optional --, a command, and then what completes that one.
_hako_prog() {
  if [[ $words[1] == -- ]] && (( CURRENT > 1 )); then
    shift words
    (( CURRENT-- ))
  fi
  if (( CURRENT == 1 )); then
    _command_names -e
  else
    _normal
  fi
}

@FUNCTIONS@

_hako_${service:t} "$@"
