from keras_coda.commands import main

main()
